"""Ways of decoding: sampling, beams, contrastive search, drafts and prompt lookup."""
