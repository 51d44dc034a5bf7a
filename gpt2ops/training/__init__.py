"""One training run around the library's Trainer."""
