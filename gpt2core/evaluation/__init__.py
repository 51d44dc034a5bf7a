"""How good a model is: scores of a text."""
