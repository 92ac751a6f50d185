"""Bytes and time: a packet-level world, and what decides in it."""
