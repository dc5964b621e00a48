"""Data: sources, tokenizer, token files and windows."""
