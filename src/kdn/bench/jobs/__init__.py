"""Benchmarks of one-token jobs: job completion time, longest input, labelling."""
