"""llama.cpp's weight files: reading, naming, tokenizer."""
