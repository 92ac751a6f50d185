"""Delivery of blocks over a link of measured throughput."""
