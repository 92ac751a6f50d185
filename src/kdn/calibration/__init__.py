"""What was measured of this model on this machine: codecs, key bias, times; and the idle work that measures.

Trades in measurements.  Only `api`, `bench` and `cli` import it.  Start reading at `times.py`.
"""
