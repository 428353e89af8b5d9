"""``flask replicated check`` on PostgreSQL: what it finds, and what it advises."""

from __future__ import annotations

import gc
import os
import signal
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from examples.cluster import Cluster, wait_until
from flask_replicated.operations.doctor import visits
from tests.doctor import examined, printed
from tests.pgbouncer import DRIVER_OPTIONS, PROGRAM, pgbouncer
from tests.postgres.support import bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

    from examples.cluster import Server

pytestmark = pytest.mark.postgres


def url(server: Server, driver: str = "psycopg") -> str:
    """Return a server's URL, with a password that must not be shown."""
    return bind(server, driver, "hush-hush")


def changed(server: Server, old: str, new: str) -> str:
    """Return a server's URL with something else in it."""
    assert old in url(server)
    return url(server).replace(old, new)


def test_sound(healthy_cluster: Cluster, driver: str) -> None:
    """A sound set-up takes one line and exits with 0, and nothing is written."""
    first, second, third = healthy_cluster.standbys
    binds = {
        "slave_1": url(first, driver),
        "slave_2": url(second, driver),
        "figures": url(healthy_cluster.primary, driver),
        "figures_slave": url(third, driver),
        "others": url(third, driver),
    }
    written = "select txid_snapshot_xmax(txid_current_snapshot())"
    before = healthy_cluster.primary.execute(written)
    code, text = printed(url(healthy_cluster.primary, driver), binds)
    assert healthy_cluster.primary.execute(written) == before
    assert text == "sound: 6 servers answered, and nothing is to be mended\n"
    assert code == 0


# What is wrong with a bind: the kind of its finding, and words of the remedy.
LEADS_NOWHERE = {
    "account": ("refused", "Correct the account in SQLALCHEMY_BINDS['slave_1']"),
    "no such database": ("refused", "Correct the name of the database in SQLALCHEMY"),
    "other database": ("database", "['slave_3'] name a copy of the primary's database"),
    "nobody listens": ("unreachable", "correct host and port in SQLALCHEMY_BINDS['sl"),
    "unknown host": ("unreachable", "correct host and port in SQLALCHEMY_BINDS['slav"),
    "setting": ("refused", "Correct that option of SQLALCHEMY_BINDS['slave_6']"),
    "tls": ("refused", "what SQLALCHEMY_BINDS['slave_7'] says of TLS"),
    "serializable": ("refused", "default_transaction_isolation=read"),
    "frozen": ("unreachable", "see why it hangs"),
    "another cluster": ("database", "name a copy of the primary's database"),
    "promoted": ("role", "Make it a standby of the primary again"),
}


def test_binds_that_lead_nowhere(healthy_cluster: Cluster) -> None:
    """All are found at once, each with its remedy, and no password is shown."""
    frozen, fine, promoted = healthy_cluster.standbys
    level = "-c default_transaction_isolation=serializable"
    promoted.promote()
    frozen.freeze()
    with Cluster(standbys=0) as other:
        wrong: list[Any] = [
            changed(fine, "//postgres", "//nobody"),
            changed(fine, f"{fine.port}/postgres", f"{fine.port}/no_such"),
            changed(fine, f"{fine.port}/postgres", f"{fine.port}/template1"),
            changed(fine, str(fine.port), "1"),
            changed(fine, "127.0.0.1", "no-such-host.invalid"),
            {"url": url(fine), "connect_args": {"options": "-c work_mem=little"}},
            {"url": url(fine), "connect_args": {"sslmode": "verify-full"}},
            {"url": url(fine), "connect_args": {"options": level}},
            url(frozen),
            url(other.primary),
            url(promoted),
        ]
        binds = {f"slave_{number}": one for number, one in enumerate(wrong, start=1)}
        told = examined(
            url(healthy_cluster.primary),
            {**binds, "slave_99": url(fine)},
        )
    assert told.code == 2
    expected = list(zip(binds, LEADS_NOWHERE.values(), strict=True))
    assert told.found == sorted((name, "error", kind) for name, (kind, _) in expected)
    for name, (kind, words) in expected:
        assert words in told.remedies[name, kind]
    assert "hush-hush" not in f"{told}"


def test_leads_to_the_primary(healthy_cluster: Cluster) -> None:
    """That is an error without another replica, else a warning, or on purpose."""
    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    alone = examined(url(primary), {"slave": url(primary)})
    assert alone.found == [("slave", "error", "primary")]
    assert (
        "Let SQLALCHEMY_BINDS['slave'] name a repl"
        in alone.remedies["slave", "primary"]
    )
    binds = {"slave_1": url(primary), "slave_2": url(standby)}
    assert examined(url(primary), binds).found == [("slave_1", "warning", "primary")]
    told = examined(url(primary), {"slave": url(primary)}, REPLICATED_ROLE_CHECK=False)
    assert told.code == 0


# The oldest SQLAlchemy leaves a connection that a listener refuses to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_primary_is_wrong(healthy_cluster: Cluster) -> None:
    """A standby in its place, or nobody, is an error of its own bind alone."""
    first, second, _ = healthy_cluster.standbys
    standby = examined(url(first), {"slave": url(second)})
    assert standby.found == [("", "error", "role")]
    assert "target_session_attrs=read-write" in standby.remedies["", "role"]
    nobody = examined(changed(first, str(first.port), "1"), {"slave": url(second)})
    assert nobody.found == [("", "error", "unreachable")]
    assert "in SQLALCHEMY_DATABASE_URI" in nobody.remedies["", "unreachable"]
    gc.collect()


@pytest.fixture
def no_rights(healthy_cluster: Cluster) -> Iterator[str]:
    """Give an account that may not ask for what all others may."""
    primary = healthy_cluster.primary
    functions = "pg_control_system(), pg_control_checkpoint()"
    primary.execute("create role limited login")
    primary.execute(f"revoke execute on function {functions} from public")
    healthy_cluster.wait_replicated()
    yield "limited"
    primary.execute(f"grant execute on function {functions} to public")
    primary.execute("drop owned by limited")
    primary.execute("drop role limited")
    healthy_cluster.wait_replicated()


def test_rights(healthy_cluster: Cluster, no_rights: str) -> None:
    """What is refused is a warning, until the SQL of the remedies has run."""
    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    account = f"//{no_rights}"
    places = (
        changed(primary, "//postgres", account),
        {"slave": changed(standby, "//postgres", account)},
    )
    told = examined(*places)
    assert {name for name, _, _ in told.found} == {"", "slave"}
    while told.code:
        assert {kind for _, _, kind in told.found} == {"privilege"}
        before = told.remedies
        for remedy in before.values():
            primary.execute(remedy.partition(": ")[2])
        healthy_cluster.wait_replicated()
        told = examined(*places)
        assert told.remedies != before


def test_lags(healthy_cluster: Cluster) -> None:
    """A replica that is too far behind is a warning."""
    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    standby.pause_replay()
    primary.execute("create table later (n int)")
    try:
        wait_until(lambda: not standby.replayed(), "the standby to be behind")
        told = examined(url(primary), {"slave": url(standby)}, REPLICATED_MAX_LAG=0.001)
    finally:
        standby.resume_replay()
        primary.execute("drop table later")
    assert told.found == [("slave", "warning", "lag")]
    assert "its replay is not paused" in told.remedies["slave", "lag"]


def test_another_timeline(healthy_cluster: Cluster) -> None:
    """A standby that still follows the former primary is an error."""
    former, promoted, _ = healthy_cluster.standbys
    promoted.promote()
    told = examined(url(promoted), {"slave": url(former)})
    assert told.found == [("slave", "error", "history")]
    assert "pg_rewind" in told.remedies["slave", "history"]


def test_schemas_apart(healthy_cluster: Cluster) -> None:
    """A replica that has not replayed a migration is a warning."""
    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    primary.execute("create table alembic_version (version_num text)")
    primary.execute("insert into alembic_version values ('old')")
    healthy_cluster.wait_replicated()
    try:
        assert examined(url(primary), {"slave": url(standby)}).code == 0
        standby.pause_replay()
        primary.execute("update alembic_version set version_num = 'new'")
        told = examined(url(primary), {"slave": url(standby)}, REPLICATED_MAX_LAG=None)
        assert told.found == [("slave", "warning", "schema")]
        assert "is 'old', and the primary's is 'new'" in told.whats["slave", "schema"]
        assert "Wait until it has replayed the" in told.remedies["slave", "schema"]
    finally:
        standby.resume_replay()
        primary.execute("drop table alembic_version")


@pytest.mark.parametrize("source", ["option", "environment"])
def test_too_many_connections(
    healthy_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Pools are multiplied by the workers, and binds of one server are added up."""
    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    arguments = ["--workers", "5"] if source == "option" else []
    if source == "environment":
        monkeypatch.setenv("WEB_CONCURRENCY", "5")
    places = url(primary), {"slave": url(standby), "figures": url(primary)}
    told = examined(*places, *arguments)
    assert told.found == [("", "warning", "connections")]
    what, remedy = told.whats["", "connections"], told.remedies["", "connections"]
    assert "5 worker processes may open 155 connections" in what
    assert "has 97 for ordinary accounts (max_connections = 100)" in what
    assert "Set max_connections = 158" in remedy
    assert "SQLALCHEMY_DATABASE_URI and SQLALCHEMY_BINDS['figures']" in remedy
    many = {f"figures_{number}": url(primary) for number in range(7)}
    told = examined(places[0], {**places[1], **many}, *arguments)
    assert told.remedies["", "connections"].endswith("['figures_2'] and 4 more")
    options = {"pool_size": 2, "max_overflow": 1}
    figures = {"url": url(primary), **options}
    binds = {**places[1], "figures": figures}
    told = examined(places[0], binds, *arguments, SQLALCHEMY_ENGINE_OPTIONS=options)
    assert told.code == 0


def test_writable(healthy_cluster: Cluster) -> None:
    """A listener that undoes the read-only session is a warning."""

    def undo(_app: Flask, db: SQLAlchemy) -> None:
        @event.listens_for(db.engines["slave"], "connect")
        def allow(connection: Any, _record: Any) -> None:
            connection.execute("set default_transaction_read_only = off")
            connection.commit()

    def set_up(app: Flask, db: SQLAlchemy) -> None:
        with app.app_context():
            undo(app, db)

    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    told = examined(url(primary), {"slave": url(standby)}, set_up=set_up)
    assert told.found == [("slave", "warning", "writable")]
    assert (
        "'connect' of SQLALCHEMY_BINDS['slave']" in told.remedies["slave", "writable"]
    )


@pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_pooler(healthy_cluster: Cluster, driver: str, mode: str, size: int) -> None:
    """One in transaction mode is a warning; in session mode all is sound."""
    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    with pgbouncer(standby.port, mode, size) as port:
        options = DRIVER_OPTIONS if driver == "psycopg" else {}
        through = url(standby, driver).replace(str(standby.port), str(port))
        binds = {"slave": {"url": through, **options}}
        told = examined(url(primary, driver), binds, "--workers", "50")
    pooler = [one for one in told.found if one[0] == "slave"]
    if mode == "session":
        assert pooler == []
    else:
        assert pooler == [("slave", "warning", "pooler")]
        assert "Set pool_mode = session" in told.remedies["slave", "pooler"]
    # A pooler has its own limit: what is behind it says nothing.
    assert ("", "warning", "connections") in told.found


@contextmanager
def hanging(server: Server) -> Iterator[dict[str, Any]]:
    """Give a bind whose creator never comes back."""
    over = Event()

    def create() -> Any:
        over.wait(60)
        raise OSError

    yield {"url": url(server), "creator": create}
    over.set()


def test_bounded(healthy_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no timeout of a driver ends is given up when the time is over."""
    monkeypatch.setattr(visits, "time_bound", lambda _: 0.5)
    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    with hanging(standby) as hung:
        told = examined(url(primary), {"slave_1": url(standby), "slave_2": hung})
    # On a busy machine the others may not be done either.
    assert ("slave_2", "error", "unreachable") in told.found
    assert "not answered within 0.5 s" in told.whats["slave_2", "unreachable"]


def test_interrupted(healthy_cluster: Cluster) -> None:
    """Ctrl-C ends it at once, with a code that stands for no finding."""

    def interrupt(_dialect: Any, _record: Any, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def set_up(app: Flask, db: SQLAlchemy) -> None:
        with app.app_context():
            event.listen(db.engines["slave_1"], "do_connect", interrupt)

    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    # A worker of pytest-xdist ignores it, unlike a command.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with hanging(standby) as hung:
            code, text = printed(
                url(primary),
                {"slave_1": url(standby), "slave_2": hung},
                set_up=set_up,
                REPLICATED_CONNECT_TIMEOUT=30,
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, text) == (130, "")
