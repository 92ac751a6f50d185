"""The store over HTTP: blocks for other nodes, management."""
