"""`gpt2 data`: a text or examples before they are trained on; one module an action."""
