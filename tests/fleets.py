"""A site whose replicas come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flask_replicated import FlaskReplicated
from tests.support import REPLICAS, Build, make_file, sqlite_url

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["Fleet", "fleet_fixture"]


class Fleet:
    """A site whose replicas come and go."""

    def __init__(self, build: Build, replicas: Any = REPLICAS, **config: Any) -> None:
        self.extension = FlaskReplicated()
        self.site = build(replicas, extension=self.extension, **config)

    def add(self, name: str, **options: Any) -> None:
        """Add a replica with a file of its own."""
        bind = {"url": sqlite_url(make_file(self.site.folder, name))}
        with self.site.app.app_context():
            self.extension.add(name, bind, **options)

    def remove(self, name: str) -> None:
        """Remove a replica."""
        with self.site.app.app_context():
            self.extension.remove(name)

    def engines(self) -> dict[Any, sa.Engine]:
        """Return ``db.engines``."""
        with self.site.app.app_context():
            return dict(self.site.db.engines)

    def live(self) -> set[str]:
        """Return the replicas in rotation."""
        with self.site.app.app_context():
            return set(self.extension.pool().snapshot().live)


@pytest.fixture(name="fleet")
def fleet_fixture(build: Build) -> Fleet:
    """Give a site with three replicas."""
    return Fleet(build)
