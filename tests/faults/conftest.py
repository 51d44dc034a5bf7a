"""A project with a store, an MLflow server that can be killed, and a disk that fills up."""

from tests.support.full_disk import small_disk
from tests.support.mlflow_server import module_server, server
from tests.support.tracked_project import bare_project, empty_store, project

__all__ = ["bare_project", "empty_store", "module_server", "project", "server", "small_disk"]
