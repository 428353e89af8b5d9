"""What each failure says of a replica, with every driver, as documented."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.verdicts.rows import DRIVERS, POSTGRESQL, ROWS, Place, Row, mariadb_url
from tests.verdicts.table import documented, rewrite, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from examples.cluster import Cluster

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module", params=DRIVERS)
def place(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    """Give a replica for each driver."""
    driver, folder = str(request.param), tmp_path_factory.mktemp("verdicts")
    if driver != "sqlite3":
        pytest.importorskip(driver)
    if driver in POSTGRESQL:
        url = sa.make_url(cluster.standbys[0].url()).set(
            drivername=f"postgresql+{driver}"
        )
    elif driver == "pymysql":
        url = mariadb_url()
        try:
            with sa.create_engine(url).connect():
                pass
        except sa.exc.OperationalError:
            pytest.skip("no MariaDB server takes root on port 3306")
    else:
        url = sa.URL.create("sqlite", database=str(_file(folder)))
    return Place(driver, url, cluster, folder)


def _file(folder: Path) -> Path:
    file = folder / "replica.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER)")
    return file


FOUND: dict[str, dict[str, str]] = {}


@pytest.fixture(scope="module", autouse=True)
def _table(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if request.config.getoption("--rewrite-verdicts", default=False):
        rewrite(FOUND)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title.strip())
def test_row(
    place: Place, healthy_cluster: Cluster, row: Row, request: pytest.FixtureRequest
) -> None:
    """A failure says of a replica what the table says."""
    if place.driver not in row.drivers:
        pytest.skip("this driver knows no such failure")
    found = verdict(row, place)
    FOUND.setdefault(row.title.strip(), {})[place.driver] = found
    if not request.config.getoption("--rewrite-verdicts", default=False):
        assert found == documented()[row.title.strip()][place.driver]
