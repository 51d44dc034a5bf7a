"""MLflow's model registry: versions, gate, champion, the text model."""
