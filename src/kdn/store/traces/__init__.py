"""Lookups recorded, replayed, simulated."""
