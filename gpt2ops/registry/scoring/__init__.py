"""How sure a score is: the luck of the text, what of it was scored, and the losses that are kept to compare with."""
