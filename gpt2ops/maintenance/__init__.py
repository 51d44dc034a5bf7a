"""Keeping a project in order: verify, relocate, rerun, doctor, garbage collection."""
