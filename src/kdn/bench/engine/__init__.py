"""The engine beside its rivals."""
