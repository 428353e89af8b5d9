"""A MariaDB primary and its replica."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.mariadb.servers import Server, have_programs, install

if TYPE_CHECKING:
    from collections.abc import Iterator


class Servers(NamedTuple):
    """The servers.

    Attributes:
        primary: Takes writes.
        replica: Replicates from it.
        other: Replicates from nobody; its id is the primary's, as that of a clone.
    """

    primary: Server
    replica: Server
    other: Server


@pytest.fixture(scope="session")
def _running() -> Iterator[Servers]:
    pytest.importorskip("pymysql")
    if not have_programs():
        pytest.skip("MariaDB's server is not installed")
    root = Path(tempfile.mkdtemp(prefix="flask-replicated-mariadb-"))
    made: list[Server] = []
    try:
        install(root / "template")
        for name, number in (("primary", 1), ("replica", 2), ("other", 1)):
            made.append(Server(root / "template", name, number))
            made[-1].start()
        yield Servers(*made)
    finally:
        for server in made:
            server.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def servers(_running: Servers) -> Servers:
    """Give a primary, its replica, and another server that is neither."""
    if not _running.replica.follows():
        _running.replica.promote()
        _running.replica.follow(_running.primary)
    return _running
