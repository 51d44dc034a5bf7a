"""Commands on the runs of a store."""
