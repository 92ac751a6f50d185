"""Tiers behind a network: Redis, object stores, nodes."""
