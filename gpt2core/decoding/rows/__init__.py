"""Rows of tokens with their keys and values."""
