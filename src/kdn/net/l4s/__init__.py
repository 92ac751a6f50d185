"""The right L4S queue for every packet: forecast its delay in each, mark accordingly.

May be imported by `bench` and `cli`.  Start reading at `policy.py` (the decision) and `scenarios.py`.
"""
