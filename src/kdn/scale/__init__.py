"""kdn beside engines of others: its store inside vLLM, and a router before many servers.

Trades in KV blocks that another engine computes, and in requests that go to servers; commands import it.
It imports the store, the server's parts and the nouns, but no engine of ours. Start reading at
`planner.py`, then `transfers.py` and `vllm/`; of the router at `router/__init__.py`.
"""
