"""The training loop: steps, optimizers, schedules, stopping, checkpoints."""
