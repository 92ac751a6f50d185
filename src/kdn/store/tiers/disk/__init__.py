"""The disk tier: files and their catalogue."""
