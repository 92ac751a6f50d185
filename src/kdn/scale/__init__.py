"""kdn's store inside engines of others: vLLM keeps its KV here.

Trades in KV blocks that another engine computes; commands import it, and it imports the store and
the nouns, but no engine of ours. Start reading at `planner.py`, then `transfers.py` and `vllm/`.
"""
