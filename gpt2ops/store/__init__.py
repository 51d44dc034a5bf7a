"""The MLflow store: where it is, how it is opened, and the SQLite file under `mlruns/`."""
