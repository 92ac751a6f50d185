"""What was measured of a model on this machine, and the idle work that measures.

Trades in measurements.  `api`, `bench` and `cli` import it.  Start reading at `of_model.py`.
"""
