"""Many servers: which router hits what is stored, and kdn inside another engine."""
