"""Benchmarks of reranking: time and nDCG."""
