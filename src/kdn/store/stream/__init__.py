"""Delivery of blocks over a link of measured throughput, in the encoding that is in time.

The store and prefix reuse import it; start reading at `delivery.py`.
"""
