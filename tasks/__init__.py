"""The pipeline's stages, and what they share."""
