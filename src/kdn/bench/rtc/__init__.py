"""Real-time video: learning, controllers, codecs, and calls with real pictures."""
