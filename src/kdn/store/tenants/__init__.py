"""How much each tenant may hold: salts, quotas, decisions, pins.

The store imports it; start reading at `tenancy.py`.
"""
