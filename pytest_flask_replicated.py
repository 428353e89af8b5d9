"""The pytest plugin of flask_replicated: the fixture ``replicated``.

A module of its own, because it is imported by every run of pytest in an environment
that has the package: so it imports neither Flask nor the package until it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask_replicated.testing import Replicated

__all__ = ["replicated"]


@pytest.fixture
def replicated(request: pytest.FixtureRequest) -> Replicated:
    """Replicas in tests: mirror(), assert_served(), replica_down() and others.

    For the fixture ``app``, if the project has one and it is a Flask application; else
    for the application that is current when a method is called.
    """
    from flask import Flask  # noqa: PLC0415 - not for every run of pytest

    from flask_replicated.testing import Replicated  # noqa: PLC0415 - the same

    try:
        app = request.getfixturevalue("app")
    except pytest.FixtureLookupError as error:
        if error.argname != "app":  # one that the project's own needs
            raise
        app = None
    return Replicated(app if isinstance(app, Flask) else None)
