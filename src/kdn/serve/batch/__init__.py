"""OpenAI's files and batches: requests from a file, answered after those that somebody waits for."""
