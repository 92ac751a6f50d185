"""Between text and token ids: templates, tokenizers, remembered answers."""
