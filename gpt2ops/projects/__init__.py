"""Projects that `gpt2 init` and `gpt2 finetune` make."""
