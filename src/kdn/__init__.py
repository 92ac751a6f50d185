"""kdn: prefill shared text once, keep its KV cache, deliver and reuse it everywhere."""
