"""Which way of answering each question is chosen, how long it takes, and whether it read the gold."""
