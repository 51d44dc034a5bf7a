"""The stage `sample`: generated texts, their metrics and reports/samples.md."""
