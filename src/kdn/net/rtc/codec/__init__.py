"""Pictures to packets and back: a neural codec that decodes from any subset of its packets.

May be imported by `net.rtc`.  Start reading at `network.py`, then `neural.py`; `scripts/rtc` trains it.
"""
