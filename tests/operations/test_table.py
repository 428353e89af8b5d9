"""Every cell of the table in ``docs/routing.md``, on every server that can do it."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING

import pytest

from tests.operations import servers
from tests.operations.catalogue import (
    MARIADB,
    POSTGRESQL,
    SERVERS,
    SQLITE,
    Operation,
    operations,
)
from tests.operations.contexts import COLUMNS, CONTEXTS
from tests.operations.table import between, published, render, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster
    from tests.operations.world import World

MARKS = {SQLITE: [], POSTGRESQL: [pytest.mark.postgres], MARIADB: [pytest.mark.mariadb]}
# One of each column, for what another server has shown in all of them.
FEW = tuple(
    next(context for context in CONTEXTS if context.column == column)
    for column in COLUMNS
)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Give the applications over SQLite files."""
    with servers.sqlite(tmp_path_factory.mktemp("operations")) as world:
        yield world


@pytest.fixture(scope="module")
def postgresql(cluster: Cluster) -> Iterator[World]:
    """Give the applications over a primary and its standbys."""
    with servers.postgresql(cluster) as world:
        yield world


@pytest.fixture(scope="module")
def mariadb() -> Iterator[World]:
    """Give the applications over a MariaDB server."""
    if find_spec("pymysql") is None:
        pytest.skip("PyMySQL is not installed")
    if not servers.mariadb_answers():
        pytest.skip("no MariaDB server answers on 127.0.0.1:3306")
    with servers.mariadb() as world:
        yield world


def cases() -> Iterator[object]:
    """Return every operation with every server that can run it."""
    for server, operation in product(SERVERS, operations()):
        if server in operation.servers:
            marks = MARKS[server]
            if operation.intended:
                wrong = pytest.mark.xfail(strict=True, reason="not so yet")
                marks = [*marks, wrong]
            name = f"{server}-{operation.name}"
            yield pytest.param(server, operation, id=name, marks=marks)


@pytest.fixture(scope="session")
def rows() -> dict[str, list[str]]:
    """Give the published rows by their titles."""
    return published()


@pytest.mark.parametrize(("server", "operation"), list(cases()))
def test_row(
    request: pytest.FixtureRequest,
    server: str,
    operation: Operation,
    rows: dict[str, list[str]],
) -> None:
    """An operation goes where the table says, in every context."""
    # A fixture with a parameter would be set up anew for each operation.
    world: World = request.getfixturevalue(server)
    whole = operation.servers[0] == server or operation.intended
    contexts = CONTEXTS if whole else FEW
    assert row_of(world, operation, contexts) == rows[operation.title]


def test_table_is_whole(rows: dict[str, list[str]]) -> None:
    """The table has a row for each operation, in order, and nothing else."""
    titles = [operation.title for operation in operations()]
    assert len(set(titles)) == len(titles)
    assert between().strip() == render(rows)
