"""The machine that kdn runs on: its facts, memory, threads, compiler and files.

Trades in facts about this machine.  Every room may import it; it knows no other room.
Start reading at `facts.py`.
"""
