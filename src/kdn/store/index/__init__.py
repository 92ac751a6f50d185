"""Which blocks there are, by key and by content."""
