"""A process among others: start-up, signals, lock, console, failures."""
