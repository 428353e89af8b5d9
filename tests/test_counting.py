"""How many reads each server got, and why the primary got those that it did."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, get_args

import pytest
import sqlalchemy as sa

from balancers import MemberSnapshot, PoolSnapshot
from flask_replicated import (
    ReplicaPoolSnapshot,
    WriteOnReplicaError,
    replicated_engine,
    use_master_database,
    use_slave_database,
    using_master,
    using_slave,
)
from flask_replicated.routing.decision import Reason
from tests.support import Build, Site, break_file, build_fixture, unpooled

if TYPE_CHECKING:
    from collections.abc import Callable

build = build_fixture


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with one replica."""
    return build(("slave_1",))


def shown(site: Site) -> ReplicaPoolSnapshot:
    """Return what is shown of the default bind."""
    with site.app.app_context():
        found: ReplicaPoolSnapshot = site.app.extensions["replicated"].pool().snapshot()
        return found


def counts(site: Site) -> tuple[int, dict[str, int]]:
    """Return the reads of all replicas together, and those of the primary."""
    found = shown(site)
    return sum(one.reads for one in found.members), dict(found.primary_reads)


def ask(site: Site, view: Callable[[], Any], method: str = "GET") -> None:
    """Let a fresh client ask for a view."""

    def page() -> str:
        view()
        return "done"

    site.app.add_url_rule("/page", "page", page, methods=["GET", "POST"])
    assert site.client().open("/page", method=method).status_code == 200


def test_nothing_yet(site: Site) -> None:
    """A snapshot is one of the pool's, with nothing counted."""
    found = shown(site)
    assert isinstance(found, PoolSnapshot)
    assert isinstance(found.members[0], MemberSnapshot)
    assert found.live == ("slave_1",)
    assert (found.members[0].reads, dict(found.primary_reads)) == (0, {})
    assert found.primary_reads["method"] == 0
    assert found.writers == ()


def test_to_look_counts_nothing(site: Site) -> None:
    """However often it is looked at, the counts are the same."""
    site.get()
    site.client().post("/")
    assert [counts(site) for _ in range(3)] == [(1, {"method": 1})] * 3


def test_plain_data(site: Site) -> None:
    """It becomes plain data, and can be pickled."""
    site.get()
    site.client().post("/")
    plain = json.loads(json.dumps(dataclasses.asdict(shown(site))))
    assert plain["members"][0]["reads"] == 1
    assert plain["primary_reads"] == {"method": 1}
    again = pickle.loads(pickle.dumps(shown(site)))
    assert again == shown(site)
    assert again.primary_reads["pinned"] == 0


def test_each_replica(build: Build) -> None:
    """Each replica has its own count."""
    site = build()
    site.count(6)
    assert [one.reads for one in shown(site).members] == [2, 2, 2]


def test_one_transaction(site: Site) -> None:
    """What follows in the same transaction is no read of its own."""

    def view() -> None:
        for _ in range(3):
            site.who()
        site.db.session.rollback()
        site.who()

    ask(site, view)
    assert counts(site) == (2, {})


def test_a_savepoint(site: Site) -> None:
    """A savepoint is none either, on any server."""

    def view() -> None:
        for _ in range(2):
            with site.db.session.begin_nested():
                site.who()
                site.who()

    ask(site, view)
    assert counts(site) == (1, {})
    assert site.client().post("/page").status_code == 200
    assert counts(site) == (1, {"method": 1})


def test_writes(site: Site) -> None:
    """A transaction that a write has begun is no read, whatever it reads later."""

    def view() -> None:
        site.db.session.add(site.entry(text="x"))
        site.db.session.flush()
        site.who()
        site.db.session.commit()

    ask(site, view)
    insert = sa.insert(site.entry.__table__).values(text="y")
    with site.app.test_request_context("/", method="POST"):
        with site.db.session.begin_nested():
            site.db.session.execute(insert)
        site.db.session.commit()
    assert counts(site) == (0, {})


def test_refused(site: Site) -> None:
    """A write that is not sent to a replica is no read of its."""

    def view() -> None:
        with using_slave(), pytest.raises(WriteOnReplicaError):
            site.db.session.execute(sa.text("SELECT nextval('x')"))

    ask(site, view)
    assert counts(site) == (0, {})


def test_core(site: Site) -> None:
    """Connections of the engine count for each of their transactions."""

    def view() -> None:
        with site.db.engine.connect() as connection:
            for _ in range(2):
                connection.execute(sa.text("SELECT 1"))
                connection.execute(sa.text("SELECT 1"))
                connection.rollback()
        with site.db.engine.connect():
            pass

    ask(site, view)
    assert counts(site) == (2, {})


def test_core_on_the_primary(site: Site) -> None:
    """And so they do on the primary."""

    def view() -> None:
        with site.db.engine.connect() as connection:
            for _ in range(2):
                connection.execute(sa.text("SELECT 1"))
                connection.execute(sa.text("SELECT 1"))
                connection.commit()

    ask(site, view, "POST")
    assert counts(site) == (0, {"method": 2})


def test_a_listener(site: Site) -> None:
    """What a listener sends as a transaction begins is no read."""
    with site.app.app_context():
        for engine in (site.db.engines[None], site.db.engines["slave_1"]):
            real = getattr(engine, "real", engine)
            sa.event.listen(real, "begin", lambda c: c.exec_driver_sql("SELECT 1"))
    site.get()
    site.client().post("/")
    assert counts(site) == (1, {"method": 1})


def pinned(site: Site) -> None:
    """Read as a client that has just written."""
    client = site.client()
    client.post("/write")  # which reads, too, once it has written
    client.get("/")


def latched(site: Site) -> None:
    """Read after a write."""

    def view() -> None:
        site.write()
        site.who()

    ask(site, view)


def learnt(site: Site) -> None:
    """Read in an endpoint that is known to write."""
    state = site.app.extensions["replicated"].state(site.app)
    state.decider.learn_writer(
        WriteOnReplicaError("SELECT slip()", "who", "refused"), {}
    )
    site.get()


def model(site: Site) -> None:
    """Read a model that must never be read stale."""
    columns = {
        "__tablename__": "marker",
        "__table_args__": {"extend_existing": True},
        "__replicated__": "master",
        "name": site.db.Column(site.db.String, primary_key=True),
    }
    fresh: Any = type("Fresh", (site.db.Model,), columns)
    ask(site, lambda: site.db.session.scalars(sa.select(fresh)).all())


def stale(site: Site) -> None:
    """Read such a model's table by a text."""
    columns = {
        "__tablename__": "entry",
        "__table_args__": {"extend_existing": True},
        "__replicated__": "master",
        "id": site.db.Column(site.db.Integer, primary_key=True),
    }
    type("Fresh", (site.db.Model,), columns)
    count = sa.text("SELECT count(*) FROM entry")
    ask(site, lambda: site.db.session.scalar(count))


def in_block(site: Site) -> None:
    """Read in a block, and in one that leaves no trace."""

    def view() -> None:
        with using_master():
            site.who()
        site.db.session.rollback()
        with using_master(pin=False):
            site.who()
            site.who()

    ask(site, view)


def by_option(site: Site) -> None:
    """Read with an option on the statement, and with one beside it."""
    master = {"replicated": "master"}

    def view() -> None:
        one = sa.select(sa.literal(1))
        site.db.session.execute(one.execution_options(**master))
        site.db.session.rollback()
        site.db.session.execute(one, execution_options=master)

    ask(site, view)


def decorated(site: Site) -> None:
    """Read in a view that is decorated."""
    ask(site, use_master_database(site.who))


def by_name(site: Site) -> None:
    """Read where the primary is named."""

    def view() -> None:
        with site.db.engine.begin() as connection:
            connection.execute(sa.text("SELECT 1"))
        options = site.db.engine.execution_options(mine=1)
        with options.connect() as connection:
            connection.execute(sa.text("SELECT 1"))

    ask(site, view)


def by_method(site: Site) -> None:
    """Read in a POST."""
    site.client().post("/")


def outside(site: Site) -> None:
    """Read without a request."""
    with site.app.app_context():
        site.who()


REASONS: dict[Reason, list[tuple[Callable[[Site], None], int]]] = {
    "bind": [(by_name, 2)],
    "block": [(in_block, 2)],
    "decorator": [(decorated, 1)],
    "latched": [(latched, 1)],
    "learnt": [(learnt, 1)],
    "method": [(by_method, 1)],
    "model": [(model, 1), (stale, 1)],
    "option": [(by_option, 2)],
    "outside": [(outside, 1)],
}
CASES = [
    (reason, act, number) for reason, acts in REASONS.items() for act, number in acts
]


@pytest.mark.parametrize(("reason", "act", "number"), CASES)
def test_reason(
    site: Site, reason: Reason, act: Callable[[Site], None], number: int
) -> None:
    """Each read of the primary is counted by what has brought it there."""
    act(site)
    assert shown(site).primary_reads == {reason: number}


def test_pinned(site: Site) -> None:
    """A client that has just written is one reason, and its write's request another."""
    pinned(site)
    assert counts(site) == (0, {"latched": 1, "pinned": 1})


def test_switched_off(build: Build) -> None:
    """The kill switch is one."""
    site = build(("slave_1",), AUTO_READ_ON_SLAVE=False)
    site.get()
    assert counts(site) == (0, {"off": 1})


def test_observed(build: Build) -> None:
    """So is observing: a read that a replica would have served has this reason."""
    site = build((), REPLICATED_MODE="observe")
    site.get()
    assert counts(site) == (0, {"observe": 1})


@pytest.mark.parametrize("is_read", [True, False])
def test_is_read(build: Build, is_read: bool) -> None:
    """REPLICATED_IS_READ is one, where it says no."""
    site = build(("slave_1",), REPLICATED_IS_READ=lambda _: is_read)
    site.get()
    assert counts(site) == ((1, {}) if is_read else (0, {"is_read": 1}))


def test_every_replica_out(build: Build, tmp_path: Any) -> None:
    """Where the primary stands in, that is the reason, for the rest of the request."""
    site = build((), binds={"slave_1": unpooled(tmp_path / "slave_1.db")})
    break_file(tmp_path, "slave_1")

    def view() -> None:
        site.who()
        site.db.session.rollback()
        site.who()

    ask(site, view)
    assert counts(site) == (0, {"fallback": 2})


def test_every_reason_is_known() -> None:
    """The words are those that the snapshot's documentation lists."""
    elsewhere = {"pinned", "off", "is_read", "fallback", "observe"}
    assert {*REASONS, *elsewhere} == set(get_args(Reason))
    told = ReplicaPoolSnapshot.__doc__ or ""
    assert all(f"'{word}'" in told for word in get_args(Reason))


def test_a_decorator_for_replicas(site: Site) -> None:
    """A read on a replica has no reason to give."""
    ask(site, use_slave_database(site.who), "POST")
    assert counts(site) == (1, {})


def test_writers(build: Build) -> None:
    """Endpoints that were learnt as writers are named, where they are learnt."""
    for learn in (True, False):
        site = build(("slave_1",), REPLICATED_LEARN_WRITERS=learn)
        state = site.app.extensions["replicated"].state(site.app)
        for endpoint in ("write", "who", "write"):
            state.decider.learn_writer(
                WriteOnReplicaError("SELECT slip()", endpoint, "no"), {}
            )
        assert shown(site).writers == (("who", "write") if learn else ())


def test_removed(build: Build) -> None:
    """A replica that is removed takes its count along."""
    site = build()
    site.count(6)
    extension = site.app.extensions["replicated"]
    with site.app.app_context():
        url = site.db.engines["slave_2"].url
        extension.remove("slave_2")
        extension.add("slave_2", url)
        pool = extension.pool()
        assert len(pool._reads._replicas) == 2
    assert {one.name: one.reads for one in shown(site).members} == {
        "slave_1": 2,
        "slave_3": 2,
        "slave_2": 0,
    }


def test_threads(build: Build) -> None:
    """No read is lost or counted twice, however many threads read and look."""
    site = build(REPLICATED_PIN_SECONDS=0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            futures: list[Future[Any]] = []
            for _ in range(120):
                futures += [threads.submit(site.get) for _ in range(2)]
                futures.append(threads.submit(by_method, site))
                futures.append(threads.submit(counts, site))
            for future in futures:
                future.result()
    finally:
        sys.setswitchinterval(interval)
    assert counts(site) == (240, {"method": 120})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child(tmp_path: Any) -> None:
    """A child begins at nothing; so the counts of all workers add up."""
    program = """
import os, sys
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_replicated import FlaskReplicated
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///one.db"
app.config["SQLALCHEMY_BINDS"] = {"slave_1": "sqlite:///one.db"}
app.config["REPLICATED_PROBE_INTERVAL"] = 0
db = SQLAlchemy(app)
replicated = FlaskReplicated(app)
with app.app_context():
    db.engine.begin().__enter__()
app.add_url_rule("/", view_func=lambda: str(db.session.scalar(db.text("select 7"))))
def reads():
    with app.app_context():
        return replicated.pool().snapshot().members[0].reads
client = app.test_client()
assert client.get("/").text == client.get("/").text == "7"
assert reads() == 2
child = os.fork()
if not child:
    assert reads() == 0
    client.get("/")
    os._exit(reads() != 1)
_, status = os.waitpid(child, 0)
assert status == 0
assert reads() == 2
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_without_an_application(tmp_path: Any) -> None:
    """Engines outside of Flask count as well."""
    url = f"sqlite:///{tmp_path / 'one.db'}"
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (a)"))
    engine = replicated_engine(sa.create_engine(url), {"one": sa.create_engine(url)})
    for block in (using_slave, using_master):
        with block(), engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    found = engine.replicas.replica_pool.snapshot()
    assert found.members[0].reads == 1
    assert found.primary_reads == {"block": 1, "outside": 1}
    engine.dispose()
