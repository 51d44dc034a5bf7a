"""What a flow run stands on: workspace, child process, work pool, services, progress."""
