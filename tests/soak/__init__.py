"""The campaign: real traffic against a real `kdn serve` while everything around it fails by a seeded plan."""
