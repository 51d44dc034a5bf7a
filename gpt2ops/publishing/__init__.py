"""Models for others: export, model card, upload."""
