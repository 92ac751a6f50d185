"""Models as one GGUF file, unpacked once into the published folder form that everything else reads.

It trades in one file's metadata and tensors; only `kdn.model.load` imports it.  Start with `file.py`, which
writes the folder; `reader.py` reads the format, `tokenizer.py` makes a tokenizer.json of its vocabulary.
"""
