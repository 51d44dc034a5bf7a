"""Commands that look after a project: its health, its files, its place."""
