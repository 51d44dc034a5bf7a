"""The web page of `gpt2 app`, and the folder that runs it as a Hugging Face Space.

Of `tasks` it takes what needs no MLflow; only `project_models` and `training_text` know of a project and its registry,
and a Space does without them.
"""
