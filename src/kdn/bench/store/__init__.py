"""Benchmarks of the store: tiers, codecs, policies, stacking, cost."""
