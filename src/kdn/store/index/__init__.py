"""Finding blocks by tokens and by content, without I/O.

The store and its tiers import it; start reading at `index.py`, then `followed.py`.
"""
