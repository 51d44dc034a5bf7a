"""Parts of the flows: workspace, child process, work pool, services, progress."""
