"""Sample texts and their page."""
