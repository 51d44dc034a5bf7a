"""The command `gpt2`."""
