"""What `gpt2 doctor` examines."""
