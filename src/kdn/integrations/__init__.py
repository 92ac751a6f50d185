"""Kdn inside other frameworks: one file each, loaded only when its framework is used.

Trades in the framework's documents and kdn's rankings. No room may import it; users do.
Start reading at `langchain.py`.
"""
