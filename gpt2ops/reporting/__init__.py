"""The plots, the report and the summary of a run."""
