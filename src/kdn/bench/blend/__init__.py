"""Benchmarks of blending: quality, time to first token, load."""
