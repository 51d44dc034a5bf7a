"""What `gpt2 gc` removes."""
