"""Bytes and time: a packet-level world, and what decides in it.

Trades in packets, bytes and seconds.  `bench` and `cli` import it; it imports nothing of the
language-model half.  Start reading at `world/__init__.py`;
`l4s` chooses queues, `rtc` is real-time video, `real` runs both over sockets.
"""
