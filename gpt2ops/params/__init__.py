"""params.yaml: its typed schema, recipes, decoding settings, and lines for mistakes."""
