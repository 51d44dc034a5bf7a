"""Files that are written whole or not at all, checksums, and the Hugging Face layout."""
