"""What operators do to a store."""
