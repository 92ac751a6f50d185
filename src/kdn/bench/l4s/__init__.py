"""Benchmarks of queue choice."""
