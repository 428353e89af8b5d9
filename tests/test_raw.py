"""What is done with a driver's own connection, which nobody can follow."""

from __future__ import annotations

import math
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Response, stream_with_context

from flask_replicated import using_master, using_slave
from tests.support import (
    REPLICAS,
    Build,
    Site,
    answer,
    break_file,
    build_fixture,
    make_file,
    pin_of,
    unpooled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

build = build_fixture

INSERT = "INSERT INTO entry (text) VALUES ('raw')"


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


def run(connection: Any, sql: str = INSERT) -> None:
    """Execute a statement on a cursor of the driver's."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(sql)


def by_cursor(site: Site) -> None:
    """Write on the session's transaction, and commit the session."""
    run(site.db.session.connection().connection)
    site.db.session.commit()


def by_driver(site: Site) -> None:
    """Write and commit on the driver's own connection, which the session shares."""
    driver: Any = site.db.session.connection().connection.driver_connection
    run(driver)
    driver.commit()


def by_name(site: Site) -> None:
    """Ask for the connection by its name."""
    name = "connection"
    run(getattr(site.db.session.connection(), name).dbapi_connection)
    site.db.session.commit()


def by_begin(site: Site) -> None:
    """Write on a Core connection."""
    with site.db.engine.begin() as connection:
        run(connection.connection)


def by_engine(site: Site) -> None:
    """Take a connection out of the engine, and give it back."""
    with closing(site.db.engine.raw_connection()) as raw:
        run(raw)
        raw.commit()


def by_bind(site: Site) -> None:
    """Take one out of the engine that the session names."""
    bind: Any = site.db.session.get_bind()
    with closing(bind.raw_connection()) as raw:
        run(raw)
        raw.commit()


WAYS = (by_cursor, by_driver, by_name, by_begin, by_engine, by_bind)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("way", WAYS)
def test_pins(site: Site, way: Callable[[Site], None], method: str) -> None:
    """It counts as a write: the request goes on with the primary, the client too."""

    def view() -> str:
        way(site)
        return site.who()

    site.app.add_url_rule("/view", "view", view, methods=[method])
    client = site.client()
    assert client.open("/view", method=method).text == "master"
    assert site.entries() == ["raw"]
    assert client.get("/").text == "master"
    assert site.get() in REPLICAS


def test_counts_until_the_response(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it wrote is not known: as late as it may have, the response's own time."""
    now, written = [1_700_000_000.0], []
    monkeypatch.setattr(time, "time", lambda: now[0])

    def view() -> str:
        with closing(site.db.engine.raw_connection()) as raw:
            site.write()
            now[0] += 60
            run(raw)
            raw.commit()
        return "done"

    state = site.app.extensions["replicated"].state(site.app)
    monkeypatch.setattr(
        state.responses.tokens,
        "remember",
        lambda _, token, _heard: written.append(token.latest_untold),
    )
    assert answer(site, view) == "done"
    assert written == [now[0]]
    assert math.isfinite(written[0])


def read(site: Site) -> None:
    """Read in a transaction that is committed."""
    site.who()
    site.db.session.commit()


def ask_about(site: Site) -> None:
    """Ask what SQLAlchemy finds out by itself, within a transaction."""
    connection = site.db.session.connection()
    connection.scalar(sa.text("SELECT name FROM marker"))
    assert connection.get_isolation_level() == "SERIALIZABLE"
    assert isinstance(connection.info, dict)
    connection.execution_options(logging_token="report")
    with site.db.session.begin_nested():
        site.who()
    sa.inspect(connection).get_table_names()
    site.db.session.commit()


def set_level(site: Site) -> None:
    """Set what is set on the driver's connection."""
    options = {"isolation_level": "AUTOCOMMIT"}
    site.db.session.connection(execution_options=options)
    read(site)


@pytest.mark.parametrize("way", [read, ask_about, set_level])
def test_own_use(site: Site, way: Callable[[Site], None]) -> None:
    """What SQLAlchemy does with it itself pins nobody."""

    def view() -> str:
        way(site)
        return "done"

    site.app.add_url_rule("/view", "view", view, methods=["POST"])
    response = site.client().post("/view")
    assert response.text == "done"
    assert pin_of(response) is None


@pytest.mark.parametrize("moment", ["engine_connect", "begin"])
def test_listeners(site: Site, moment: str) -> None:
    """Nor what listeners do that prepare a connection, or a transaction."""
    with site.app.app_context():

        @sa.event.listens_for(site.db.engine, moment)
        def prepare(connection: sa.Connection) -> None:
            run(connection.connection, "PRAGMA cache_size = 100")
            if moment == "engine_connect":
                connection.scalar(sa.text("SELECT 1"))
                connection.rollback()

    def view() -> str:
        with using_master():
            name = site.who()
            site.db.session.commit()
        return f"{name} {site.role()}"

    site.app.add_url_rule("/view", "view", view)
    response = site.client().get("/view")
    assert response.text == "master replica"
    assert pin_of(response) is None


def test_of_a_replica(site: Site) -> None:
    """A replica's connection is read only, and its cursor neither latches nor pins."""

    def view() -> str:
        with using_slave():
            driver: Any = site.db.session.connection().connection
            run(driver, "SELECT name FROM marker")
        with site.db.engine.connect() as connection:
            run(connection.connection, "SELECT name FROM marker")
        return site.who()

    site.app.add_url_rule("/view", "view", view)
    response = site.client().get("/view")
    assert response.text in REPLICAS
    assert pin_of(response) is None


def test_stands_in(build: Build, tmp_path: Path) -> None:
    """Where the primary stands in for the replicas, the connection is the primary's."""
    make_file(tmp_path, "slave_1")
    site = build((), binds={"slave_1": unpooled(tmp_path / "slave_1.db")})
    break_file(tmp_path, "slave_1")

    def view() -> str:
        with using_slave():
            run(site.db.session.connection().connection)
            site.db.session.commit()
        return site.who()

    site.app.add_url_rule("/view", "view", view)
    response = site.client().get("/view")
    assert response.text == "master"
    assert pin_of(response) is not None
    assert site.entries() == ["raw"]


def test_while_streaming(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A late read with it is no reason to warn; a late commit is."""

    def view() -> Response:
        def body() -> Iterator[str]:
            connection = site.db.session.connection()
            run(connection.connection, "SELECT name FROM marker")
            yield f"{len(caplog.records)} "
            run(connection.connection)
            site.db.session.commit()
            yield f"{len(caplog.records)}"

        return Response(stream_with_context(body()))

    assert answer(site, view) == "0 1"
    assert "'view' committed a write after its response" in caplog.text


@pytest.mark.parametrize("way", WAYS)
def test_outside_a_request(site: Site, way: Callable[[Site], None]) -> None:
    """A job has no client that could be pinned."""
    with site.app.app_context():
        way(site)
        site.db.session.remove()
    assert site.entries() == ["raw"]


@pytest.mark.parametrize(
    ("module", "may_write"), [("sqlalchemy_continuum.manager", False), ("shop", True)]
)
def test_compared_only(site: Site, module: str, may_write: bool) -> None:
    """A library that only compares driver's connections writes nothing with them."""
    scope: dict[str, Any] = {"__name__": module}
    exec("def same(one): return one.connection is one.connection", scope)
    with site.app.test_request_context(method="POST"):
        connection = site.db.session.connection()
        assert scope["same"](connection)
        assert connection.maybe_wrote is may_write  # type: ignore[attr-defined]  # the routed one
