"""kdn's store behind engines and clusters that exist: vLLM, Ray, a router.

Trades in KV blocks of other engines and in requests on their way to one; commands import it, and it
imports the rooms below but no engine of ours. Start reading at `planner.py`, then `transfers.py`
and `vllm.py`.
"""
