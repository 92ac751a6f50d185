"""Who may keep how much: salts, quotas, limits, pins."""
