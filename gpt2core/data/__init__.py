"""Corpus files, splits, token shards and batches."""
