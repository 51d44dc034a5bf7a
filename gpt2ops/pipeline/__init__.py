"""DVC's lock file and cache, the code version, and results on disk."""
