"""The models behind the page, and who is served next."""
