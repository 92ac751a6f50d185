"""Recorded lookups, played against eviction policies.

Commands and benchmarks import it; start reading at `recording.py`.
"""
