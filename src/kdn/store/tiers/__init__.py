"""Where blocks are stored: memory, disk, remote.

The store imports it; start reading at `tier.py`, then `memory.py`.
"""
