"""MLflow runs, also while their store is away."""
