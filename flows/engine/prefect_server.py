"""Prefect's server as `flows.serve` starts it: as `prefect server start`, but other sites' pages are refused.

Without this any page that a user opens could start runs: Prefect's server takes every Host and Origin.
"""

import argparse

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings

from gpt2ops.process.local_requests import LocalRequests


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.engine.prefect_server")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    address = parser.parse_args()
    app = LocalRequests(create_app(final=True))
    level = get_current_settings().server.logging_level.lower()
    uvicorn.run(app, host=address.host, port=address.port, log_level=level)


if __name__ == "__main__":
    main()
