"""The OpenAI-compatible API: bodies to requests, events to answers."""
