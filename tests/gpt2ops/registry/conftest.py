"""Fixtures for the tests of the registry."""

from tests.support.tracked_project import bare_project, empty_store, project

__all__ = ["bare_project", "empty_store", "project"]
