"""One stored block: its name, its bytes on disk and on the wire, its reader.

Everything in the store imports it; start reading at `format.py`.
"""
