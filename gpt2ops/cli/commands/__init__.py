"""One file for each subcommand of `gpt2`."""
