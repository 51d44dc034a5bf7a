"""What changes the logits of a step: penalties, and the filters of sampling."""
