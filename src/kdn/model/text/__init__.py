"""Between text and token ids: the published tokenizer and the published chat template.

It trades in strings, messages and token ids; only `kdn.model` imports it, and passes it on.  Start with
`tokenizer.py`; `chat.py` cuts conversations into segments, `template.py` runs the published template.
"""
