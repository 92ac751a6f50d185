"""Rate controllers of a call: each is a class with `decide(feedback)`.

May be imported by `net.rtc`.  Start reading at `gcc.py`.
"""
