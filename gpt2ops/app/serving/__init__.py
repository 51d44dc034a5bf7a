"""Generation for the web page: models, limits, and the queue of requests."""
