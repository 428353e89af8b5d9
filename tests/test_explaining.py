"""Where a request has read, and why: the header, the list, the log and the trace."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, get_args

import pytest
from flask import Response, abort, request, stream_with_context
from sqlalchemy import select, update

from flask_replicated import (
    Explanation,
    use_master_database,
    use_slave_database,
    using_master,
    using_slave,
)
from flask_replicated.routing.decision import (
    BLOCKS,
    BY_NAME,
    FALLBACKS,
    MODEL,
    NO_REPLICA,
    OPTIONS,
    OUTSIDE,
    OWN_WRITE,
    PINNED,
    Reason,
    Role,
    decide,
    observed,
)
from flask_replicated.routing.explanations import MAX_KEPT, add_server_timing, tell
from tests.support import Build, Site, break_file, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

build = build_fixture

HEADER = "Server-Timing"


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with one replica, in debug mode."""
    return build(("slave_1",), DEBUG=True)


def ask(site: Site, view: Callable[[], Any], method: str = "GET") -> str | None:
    """Return the header of the answer to a view."""
    site.app.add_url_rule(
        "/page", "page", lambda: view() or "done", methods=["GET", "POST"]
    )
    return site.client().open("/page", method=method).headers.get(HEADER)


def explanation(site: Site) -> list[Explanation]:
    """Return what the extension explains of the running request."""
    found: list[Explanation] = site.app.extensions["replicated"].explanation()
    return found


def timing(*shown: str) -> str:
    """Return the header that shows these descriptions."""
    return ", ".join(f'db;desc="{one}"' for one in shown)


class TestHeader:
    """``REPLICATED_EXPLAIN``."""

    def test_a_replica(self, site: Site) -> None:
        """The replica is named, and the rule."""
        assert ask(site, site.who) == timing("slave_1: GET only reads")

    def test_the_primary(self, site: Site) -> None:
        """So is the primary."""
        assert ask(site, site.who, "POST") == timing("primary: POST may write")

    def test_each_once(self, site: Site) -> None:
        """Each server and reason is shown once, in their order, with what follows."""

        def view() -> None:
            for _ in range(3):
                site.who()
                site.db.session.rollback()
            site.db.session.add(site.entry(text="x"))
            site.db.session.flush()
            site.who()

        wrote = "this request has written, locked or changed its session"
        assert ask(site, view) == timing("slave_1: GET only reads", f"primary: {wrote}")

    def test_nothing_was_read(self, site: Site) -> None:
        """A response whose request has not read says nothing."""
        assert ask(site, site.write, "POST") is None
        assert HEADER not in site.client().get("/nowhere").headers

    @pytest.mark.parametrize(
        ("setting", "debug", "shown"),
        [
            (None, False, False),
            (None, True, True),
            (False, True, False),
            (True, False, True),
        ],
    )
    def test_when(
        self, build: Build, setting: bool | None, debug: bool, shown: bool
    ) -> None:
        """The setting decides; without one, debug mode as the response leaves."""
        site = build(("slave_1",), REPLICATED_EXPLAIN=setting)

        def view() -> None:
            site.who()
            site.app.config["DEBUG"] = debug

        assert (ask(site, view) is not None) is shown

    def test_streamed(self, site: Site) -> None:
        """The headers of a streamed body tell what was read before they left."""

        def body() -> Iterator[str]:
            with using_master():
                yield site.who()

        def view() -> Response:
            if request.args:
                site.who()
            return Response(stream_with_context(body()))

        assert ask(site, view) is None
        early = site.client().get("/page?early=1")
        assert early.text == "master"
        assert early.headers[HEADER] == timing("slave_1: GET only reads")

    def test_errors(self, site: Site) -> None:
        """An error page tells what was read before it."""

        def view() -> None:
            site.who()
            abort(404)

        assert ask(site, view) == timing("slave_1: GET only reads")

    def test_own_header(self, site: Site) -> None:
        """A header that the view sets stays, and is continued."""

        def view() -> Response:
            site.who()
            return Response("x", headers={HEADER: "app;dur=2"})

        expected = f"app;dur=2, {timing('slave_1: GET only reads')}"
        assert ask(site, view) == expected

    def test_nested_requests(self, site: Site) -> None:
        """A request inside a request tells of itself, and so does the outer one."""
        inner: list[str | None] = []

        def view() -> None:
            site.who()
            inner.append(site.client().post("/").headers.get(HEADER))

        assert ask(site, view) == timing("slave_1: GET only reads")
        assert inner == [timing("primary: POST may write")]

    def test_another_application(self, site: Site, build: Build) -> None:
        """A context of another application, or its request, is not confused with it."""
        other = build(("slave_2",), DEBUG=True, REPLICATED_EXPLAIN=True)
        found: list[Any] = []

        def view() -> None:
            site.who()
            with other.app.app_context():
                found.append(explanation(other))
            found.append(other.client().get("/").headers[HEADER])

        assert ask(site, view) == timing("slave_1: GET only reads")
        assert found == [[], timing("slave_2: GET only reads")]

    def test_hostile_names(self) -> None:
        """Quotes, line breaks and other letters cannot end the header or a value."""
        name = 'a"b\\c\r\nSet-Cookie: é'
        decision = PINNED._replace(role=Role.REPLICA)
        [(_, value)] = add_server_timing([], [(None, name, decision)])
        assert value == (
            'db;desc="a\\"b\\\\c??Set-Cookie: ?: the client has just written"'
        )
        [(_, value)] = add_server_timing([], [("bö", None, PINNED)])
        assert value == timing("primary: the client has just written (bind 'b?')")

    def test_bounded(self) -> None:
        """However much was read, the header stays short."""
        noted = [(None, f"slave_{number}", PINNED) for number in range(500)]
        [(_, value)] = add_server_timing([], noted)
        assert len(value) < 1000


class TestReasons:
    """What each rule says."""

    CASES: dict[str, Callable[[Site], Any]] = {  # noqa: RUF012 - a table
        "primary: inside using_master()": using_master()(Site.who),
        "slave_1: inside using_slave()": using_slave()(Site.who),
        "primary: execution_options(replicated='master')": lambda site: (
            site.db.session.scalar(
                select(site.marker.name).execution_options(replicated="master")
            )
        ),
        "slave_1: execution_options(replicated='slave')": lambda site: (
            site.db.session.scalar(
                select(site.marker.name).execution_options(replicated="slave")
            )
        ),
    }

    @pytest.mark.parametrize("shown", CASES)
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_asked_for(self, site: Site, shown: str, method: str) -> None:
        """A block or an option is named, whatever the request's rule says."""

        def view() -> None:
            self.CASES[shown](site)

        assert ask(site, view, method) == timing(shown)

    def test_option_in_a_block(self, site: Site) -> None:
        """An option is stronger than a block, and so it is what is named."""

        def view() -> None:
            statement = select(site.marker.name)
            with using_slave():
                site.db.session.scalar(statement.execution_options(replicated="master"))

        shown = timing("primary: execution_options(replicated='master')")
        assert ask(site, view) == shown

    def test_model(self, site: Site) -> None:
        """A model that is read from the primary alone says so."""

        class Till(site.db.Model):  # type: ignore[name-defined,misc]
            __tablename__ = "entry"
            __table_args__ = {"extend_existing": True}  # noqa: RUF012
            __replicated__ = "master"

        def view() -> None:
            site.db.session.scalars(select(Till)).all()

        shown = timing("primary: its model says __replicated__ = 'master'")
        assert ask(site, view) == shown

    def test_own_write(self, build: Build) -> None:
        """What is read after housekeeping in its transaction says so."""
        housekeeping = {"entry": ["text"]}
        site = build(("slave_1",), DEBUG=True, REPLICATED_UNPINNED=housekeeping)

        def view() -> None:
            site.db.session.execute(update(site.entry).values(text="seen"))
            site.db.session.scalars(select(site.entry)).all()

        assert ask(site, view) == timing("primary: its transaction has written")

    @pytest.mark.parametrize(
        ("decorate", "method", "server"),
        [
            (use_master_database, "GET", "primary"),
            (use_slave_database, "POST", "slave_1"),
        ],
    )
    def test_decorator(
        self, site: Site, decorate: Any, method: str, server: str
    ) -> None:
        """So does a decorator."""
        site.app.add_url_rule("/view", "view", decorate(site.who), methods=[method])
        found = site.client().open("/view", method=method).headers[HEADER]
        assert found == timing(f"{server}: the view is decorated")

    def test_pin(self, site: Site) -> None:
        """A client that has just written is told why it reads from the primary."""
        client = site.client()
        client.post("/write")
        shown = timing("primary: the client has just written")
        assert client.get("/").headers[HEADER] == shown

    def test_fallback(self, site: Site) -> None:
        """So is one whose replicas are all out."""
        break_file(site.folder, "slave_1")
        assert ask(site, site.who) == timing("primary: every replica is out")

    def test_by_name(self, site: Site) -> None:
        """An engine that was asked for by name, with and without a block."""

        def view() -> None:
            with site.db.engine.begin() as connection:
                connection.execute(select(site.marker.name))
            with using_slave(), site.db.engine.begin() as connection:
                connection.execute(select(site.marker.name))

        assert ask(site, view) == timing(
            "primary: the primary was asked for by name",
            "slave_1: inside using_slave()",
        )

    def test_every_reason_has_a_clause(self) -> None:
        """Each word of the closed set belongs to a clause that people can read."""

        def rule(**facts: Any) -> Any:
            rest = {"readonly_methods": frozenset({"GET"}), "read_on_replica": True}
            return decide(**{"method": "GET", **rest, **facts})

        decisions = [
            *BY_NAME.values(),
            *BLOCKS.values(),
            *OPTIONS.values(),
            *(rule(latched=why) for why in FALLBACKS),
            *(rule(is_read=answer) for answer in (True, False)),
            *(rule(method=method) for method in ("GET", "POST")),
            *(rule(mark=role) for role in Role),
            rule(latched="it has written"),
            rule(known_writer=True),
            rule(pinned=True),
            rule(read_on_replica=False),
            observed(rule()),
            MODEL,
            NO_REPLICA,
            OUTSIDE,
            OWN_WRITE,
            observed(NO_REPLICA),
        ]
        assert {one.word for one in decisions} == set(get_args(Reason))
        assert all(" " in one.reason or "(" in one.reason for one in decisions)


class TestList:
    """``explanation()``."""

    def test_oldest_first(self, build: Build) -> None:
        """Each read is one entry, in any mode, with its bind."""
        binds = {}
        site = build(("slave_1",))
        for name in ("analytics", "analytics_slave_1"):
            binds[name] = sqlite_url(make_file(site.folder, name))
        site = build(("slave_1",), binds=binds)
        found: list[Explanation] = []

        def view() -> None:
            assert explanation(site) == []
            site.who()
            with using_master():
                site.db.session.remove()
                site.who()
            with site.db.engines["analytics"].connect() as connection:
                connection.execute(select(site.marker.name))
            found.extend(explanation(site))

        assert ask(site, view) is None
        assert found == [
            Explanation(None, "replica", "slave_1", "GET only reads"),
            Explanation(None, "primary", None, "inside using_master()"),
            Explanation("analytics", "replica", "analytics_slave_1", "GET only reads"),
        ]

    def test_outside(self, site: Site) -> None:
        """Outside a request, and outside any application, there is none."""
        with site.app.app_context():
            site.who()
            assert explanation(site) == []
        assert explanation(site) == []

    def test_bounded(self, site: Site) -> None:
        """A request that reads without end keeps the first reads alone."""
        found: list[Explanation] = []

        def view() -> None:
            for _ in range(MAX_KEPT + 20):
                site.who()
                site.db.session.rollback()
            found.extend(explanation(site))

        ask(site, view)
        assert len(found) == MAX_KEPT

    def test_counts_agree(self, site: Site) -> None:
        """The snapshot counts the same reads by the same reasons."""
        ask(site, using_slave()(site.who), "POST")
        site.get()
        with site.app.app_context():
            shown = site.app.extensions["replicated"].pool().snapshot()
        assert shown.replica_reads == {"block": 1, "method": 1}
        assert shown.replica_reads["decorator"] == 0
        assert shown.members[0].reads == 2


class TestLog:
    """The logger ``flask_replicated.routing``."""

    def test_one_line_for_each(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """At DEBUG each read is one line, outside requests too; else there is none."""
        with caplog.at_level(logging.INFO, "flask_replicated.routing"):
            site.get()
        with caplog.at_level(logging.DEBUG, "flask_replicated.routing"):
            site.get()
            with site.app.app_context():
                site.who()
        site.get()
        lines = [one for one in caplog.records if one.name.endswith(".routing")]
        assert [one.getMessage() for one in lines] == [
            "who reads from slave_1: GET only reads",
            "(no request) reads from the primary: there is no request",
        ]
        assert lines[0].__dict__["replicated_replica"] == "slave_1"
        assert lines[0].__dict__["replicated_reason"] == "GET only reads"

    def test_hostile_names(self, caplog: pytest.LogCaptureFixture) -> None:
        """No name can end the line, or control a terminal."""
        with caplog.at_level(logging.DEBUG, "flask_replicated.routing"):
            tell((None, "a\r\x1b[2J_slave_1", PINNED))
        (line,) = caplog.messages
        assert line.startswith("(no request) reads from a\\r\\x1b[2J_slave_1: ")

    def test_a_disabled_logger(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """``dictConfig()`` disables loggers that it does not name."""
        named = logging.getLogger("flask_replicated.routing")
        with caplog.at_level(logging.DEBUG, named.name):
            named.disabled = True
            try:
                assert site.get() == "slave_1"
            finally:
                named.disabled = False
        assert not [one for one in caplog.records if one.name == named.name]

    def test_a_handler_that_raises(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A filter of the program's own that raises harms no read."""

        def fail(record: logging.LogRecord) -> bool:
            if record.levelno == logging.DEBUG:
                raise LookupError
            return True

        named = logging.getLogger("flask_replicated.routing")
        named.addFilter(fail)
        try:
            with caplog.at_level(logging.DEBUG, named.name):
                assert site.get() == "slave_1"
        finally:
            named.removeFilter(fail)
        assert "could not be told" in caplog.text


class TestTrace:
    """OpenTelemetry's current span."""

    def test_attributes(self, site: Site) -> None:
        """The span around a read gets its role, its server and the reason."""
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        tracer = sdk.TracerProvider().get_tracer("test")
        with tracer.start_as_current_span("GET /") as span:
            site.get()
        assert dict(span.attributes) == {
            "replicated.role": "replica",
            "replicated.replica": "slave_1",
            "replicated.reason": "GET only reads",
        }
        with tracer.start_as_current_span("POST /") as span:
            site.client().post("/")
        assert span.attributes["replicated.replica"] == "primary"

    def test_a_tracer_that_raises(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A module that is not what it seems harms no read."""
        monkeypatch.setitem(sys.modules, "opentelemetry.trace", contextlib)
        assert site.get() == "slave_1"
