"""`gpt2 doctor`: the checks of the machine, the project and the MLflow store."""
