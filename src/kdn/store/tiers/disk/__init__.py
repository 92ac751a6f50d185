"""The disk tier: files, and a catalogue that processes share.

The store's opener imports it; start reading at `disk.py`.
"""
