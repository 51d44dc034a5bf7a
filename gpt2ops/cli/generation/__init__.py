"""Prompts and texts of `gpt2 generate`."""
