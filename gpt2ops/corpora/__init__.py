"""Where a training text comes from: files, downloads, the hub."""
