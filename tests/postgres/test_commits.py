"""A replica that is lost never harms what the primary commits."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.postgres.support import STANDBYS, bind, end_backends, named

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from examples.cluster import Cluster, Standby
    from tests.postgres.support import Backend, Build, Site

    Lose = Callable[[Backend], object]
    Transaction = Callable[[Site, str, Lose], Backend]

pytestmark = pytest.mark.postgres

RUNS = 40


def plain(site: Site, text: str, lose: Lose) -> Backend:
    """Read, write, lose the replica, commit."""
    backend = site.who()
    site.db.session.add(site.item(text=text))
    site.db.session.flush()
    lose(backend)
    site.db.session.commit()
    return backend


def lost_before_write(site: Site, text: str, lose: Lose) -> Backend:
    """Read, lose the replica, write, commit."""
    backend = site.who()
    lose(backend)
    site.db.session.add(site.item(text=text))
    site.db.session.commit()
    return backend


def read_again(site: Site, text: str, lose: Lose) -> Backend:
    """Read, write, lose the replica, read what was written, commit."""
    backend = site.who()
    site.db.session.add(site.item(text=text))
    site.db.session.flush()
    lose(backend)
    assert text in site.texts()
    site.db.session.commit()
    return backend


def savepoint(site: Site, text: str, lose: Lose) -> Backend:
    """Read, write in a savepoint, lose the replica in it, release it, commit."""
    backend = site.who()
    with site.db.session.begin_nested():
        site.db.session.add(site.item(text=text))
        site.db.session.flush()
        lose(backend)
    site.db.session.commit()
    return backend


def savepoint_rolled_back(site: Site, text: str, lose: Lose) -> Backend:
    """Write, lose the replica in a savepoint, roll that back, commit the rest."""
    backend = site.who()
    site.db.session.add(site.item(text=text))
    nested = site.db.session.begin_nested()
    site.db.session.add(site.item(text=f"{text} in vain"))
    site.db.session.flush()
    lose(backend)
    nested.rollback()
    site.db.session.commit()
    return backend


def read_in_savepoint(site: Site, text: str, lose: Lose) -> Backend:
    """Read for the first time in a savepoint, lose the replica after it, commit."""
    with site.db.session.begin_nested():
        backend = site.who()
        site.db.session.add(site.item(text=text))
    lose(backend)
    with site.db.session.begin_nested():
        assert text in site.texts()
    site.db.session.commit()
    return backend


@pytest.fixture(
    params=[
        (plain, False),
        (lost_before_write, False),
        (read_again, False),
        (savepoint, False),
        (savepoint_rolled_back, False),
        (read_in_savepoint, False),
        (plain, True),
        (read_again, True),
        (savepoint, True),
    ],
    ids=lambda case: f"{case[0].__name__}{'-two_phase' * case[1]}",
)
def case(request: pytest.FixtureRequest, cluster: Cluster) -> tuple[Transaction, bool]:
    """Give a transaction, and whether it is committed in two phases."""
    allowed = cluster.primary.execute("show max_prepared_transactions")
    if request.param[1] and allowed == [("0",)]:
        pytest.skip("max_prepared_transactions is 0")
    transaction, twophase = request.param
    return transaction, twophase


def terminate(standbys: Sequence[Standby]) -> None:
    """Terminate the client connections of all standbys."""
    for standby in standbys:
        end_backends(standby)


def kill(standbys: Sequence[Standby]) -> None:
    """Kill one standby."""
    standbys[0].kill()


@pytest.mark.parametrize("loss", [terminate, kill])
def test_replica_lost(
    build: Build,
    healthy_cluster: Cluster,
    driver: str,
    case: tuple[Transaction, bool],
    loss: Callable[[Sequence[Standby]], None],
) -> None:
    """A row is committed exactly once, whatever becomes of the replicas it was with."""
    transaction, twophase = case
    standbys = healthy_cluster.standbys
    options = {"pool_size": RUNS}
    site = build(
        {n: {"url": bind(one, driver), **options} for n, one in named(standbys)},
        twophase=twophase,
        SQLALCHEMY_ENGINE_OPTIONS=options,
    )
    # All runs reach the moment of the loss before any goes on.
    reached = threading.Barrier(RUNS, action=lambda: loss(standbys), timeout=30)

    def view(text: str) -> dict[str, list[str]]:
        served = transaction(site, text, lambda _: reached.wait())
        return {"servers": [served.server], "texts": [text]}

    site.app.add_url_rule("/run/<text>", "run", view)
    with ThreadPoolExecutor(RUNS) as threads:
        pages = [f"/run/{run}" for run in range(RUNS)]
        answers = list(threads.map(lambda page: site.get(path=page), pages))
    served = Counter(answer.servers[0] for answer in answers)
    assert set(served) == set(STANDBYS)
    rows = healthy_cluster.primary.execute("select text from item")
    assert Counter(text for (text,) in rows) == Counter(map(str, range(RUNS)))
    assert healthy_cluster.primary.execute("select * from pg_prepared_xacts") == []
    assert site.checked_out() == 0
