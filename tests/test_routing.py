"""Which server a statement of an application reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from flask import Flask, Response, g, stream_with_context

from flask_replicated import FlaskReplicated
from tests.support import REPLICAS, Build, Site, answer, build_fixture, core

if TYPE_CHECKING:
    from collections.abc import Iterator

build = build_fixture


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


class TestMethods:
    """The method of a request decides first."""

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_reading_methods(self, site: Site, method: str) -> None:
        """GET and HEAD read from a replica."""
        site.client().open("/", method=method)
        assert site.seen[0] in REPLICAS

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    def test_writing_methods(self, site: Site, method: str) -> None:
        """Every other method reads from the primary."""
        site.client().open("/", method=method)
        assert site.seen == ["master"]

    def test_setting(self, build: Build) -> None:
        """REPLICATED_READONLY_METHODS says which methods read from a replica."""
        site = build(REPLICATED_READONLY_METHODS={"get", "OPTIONS"})
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            site.client().open("/", method=method)
        roles = ["master" if name == "master" else "replica" for name in site.seen]
        assert roles == ["replica", "master", "replica", "master"]

    def test_class_attribute(self, build: Build) -> None:
        """READONLY_METHODS of a subclass is the default, and the setting wins."""

        class Stricter(FlaskReplicated):
            READONLY_METHODS = frozenset({"HEAD"})

        assert build(extension=Stricter()).get() == "master"
        methods = {"GET"}
        loose = build(extension=Stricter(), REPLICATED_READONLY_METHODS=methods)
        assert loose.get() in REPLICAS

    def test_kill_switch(self, build: Build) -> None:
        """AUTO_READ_ON_SLAVE = False sends every method to the primary."""
        assert build(AUTO_READ_ON_SLAVE=False).count(6) == {"master": 6}

    def test_outside_a_request(self, site: Site) -> None:
        """A shell, a command or a job reads from the primary."""
        with site.app.app_context():
            assert site.who() == "master"

    def test_command_line(self, site: Site) -> None:
        """A command of the application reads and writes on the primary."""

        @site.app.cli.command("job")
        def job() -> None:
            site.write("by a job")
            site.who()

        result = site.app.test_cli_runner().invoke(args=["job"])
        assert result.exit_code == 0, result.output
        assert site.seen == ["master"]
        assert site.entries() == ["by a job"]


def test_get_by_primary_key(site: Site) -> None:
    """session.get() and refresh() read from the request's replica."""
    with site.app.test_request_context():
        name = site.who()
        found = site.db.session.get(site.marker, name)
        assert found is not None
        site.db.session.refresh(found)
        assert site.who() == name


class TestOneReplicaPerRequest:
    """Two reads of one request never see time run backwards."""

    def test_across_transactions(self, site: Site) -> None:
        """Commit, rollback and removal of the session keep the replica."""
        with site.app.test_request_context():
            first = site.who()
            for end in (
                site.db.session.commit,
                site.db.session.rollback,
                site.db.session.remove,
                site.db.session.close,
            ):
                end()
                assert site.who() == first

    def test_across_sessions(self, site: Site) -> None:
        """A nested application context, with its own session, keeps the replica."""
        with site.app.test_request_context():
            first = site.who()
            with site.app.app_context():
                assert site.who() == first
            assert core(site.db.engine) == first

    def test_hooks(self, site: Site) -> None:
        """Hooks and the view of one request read from one replica."""
        site.app.before_request(lambda: (site.who(), None)[1])
        site.app.teardown_request(lambda _: (site.who(), None)[1])

        @site.app.after_request
        def after(response: Response) -> Response:
            site.who()
            return response

        served = site.get()
        assert site.seen == [served] * 4

    @pytest.mark.parametrize("read_before", [False, True])
    def test_savepoint(self, site: Site, read_before: bool) -> None:
        """A read inside a savepoint stays on the request's replica."""
        with site.app.test_request_context():
            first = site.who() if read_before else None
            with site.db.session.begin_nested():
                inside = site.who()
            assert inside in REPLICAS
            assert first in {None, inside}
            savepoint = site.db.session.begin_nested()
            site.who()
            savepoint.rollback()
            assert site.who() == inside

    def test_streaming(self, site: Site) -> None:
        """A streamed body reads from the replica of its request."""

        def stream() -> Response:
            first = site.who()

            def body() -> Iterator[str]:
                yield first
                yield f",{site.who()}"

            return Response(stream_with_context(body()))

        first, second = answer(site, stream).split(",")
        assert first == second
        assert first in REPLICAS

    def test_error_handler(self, site: Site) -> None:
        """An error page reads from the replica that the view used."""
        site.app.register_error_handler(KeyError, lambda _: site.who())

        def fail() -> str:
            g.served = site.who()
            raise KeyError

        served = answer(site, fail)
        assert site.seen == [served] * 2

    def test_unknown_url(self, site: Site) -> None:
        """A page for an unknown URL reads from a replica."""
        site.app.register_error_handler(404, lambda _: site.who())
        assert site.get("/no-such-page") in REPLICAS


class TestLatch:
    """A write ties the rest of its request to the primary."""

    def test_read_after_write(self, site: Site) -> None:
        """A GET that has written reads from the primary from then on."""

        def both() -> str:
            before = site.who()
            site.write()
            return f"{before} {site.who()}"

        before, after = answer(site, both).split()
        assert before in REPLICAS
        assert after == "master"
        assert site.entries() == ["written"]

    def test_unflushed_write(self, site: Site) -> None:
        """A query that flushes an insert reads from the primary."""

        def both() -> str:
            site.db.session.add(site.entry(text="pending"))
            found = site.db.session.scalar(sa.select(site.entry.text))
            return f"{found} {site.who()}"

        assert answer(site, both) == "pending master"

    def test_shared_by_sessions(self, site: Site) -> None:
        """The latch holds for every session and connection of the request."""
        with site.app.test_request_context():
            with site.app.app_context():
                site.write()
            assert site.who() == "master"
            assert core(site.db.engine) == "master"

    def test_rolled_back(self, site: Site) -> None:
        """A write that is rolled back latches all the same."""
        with site.app.test_request_context():
            site.db.session.add(site.entry(text="gone"))
            site.db.session.flush()
            site.db.session.rollback()
            assert site.who() == "master"

    def test_next_request_is_free(self, site: Site) -> None:
        """The latch ends with its request."""
        site.get("/write")
        assert site.get() in REPLICAS

    def test_lock(self, site: Site) -> None:
        """A locking read goes to the primary, and so do the reads after it."""

        def both() -> str:
            query = sa.select(site.marker.name).with_for_update()
            return f"{site.db.session.scalar(query)} {site.who()}"

        assert answer(site, both) == "master master"


class TestExplicit:
    """What the caller names is what the caller gets."""

    def test_bind_argument(self, site: Site) -> None:
        """An explicit bind is stronger than everything else."""

        def read() -> str:
            engine = site.db.engines["slave_2"]
            query = sa.select(site.marker.name)
            return str(site.db.session.scalar(query, bind_arguments={"bind": engine}))

        site.app.add_url_rule("/explicit", "explicit", read, methods=["POST"])
        assert {site.client().post("/explicit").text for _ in range(4)} == {"slave_2"}

    def test_session_connection(self, site: Site) -> None:
        """``session.connection()`` may be written to, so it is the primary's."""

        def read() -> str:
            connection = site.db.session.connection()
            return str(connection.scalar(sa.select(site.marker.name)))

        assert answer(site, read) == "master"


def test_other_applications_request(build: Build) -> None:
    """A request of one application decides nothing for another application."""
    outer, inner = build(), build()
    with outer.app.test_request_context(), inner.app.app_context():
        assert inner.who() == "master"


def test_two_requests_at_once(site: Site) -> None:
    """A request that is made inside another one has its own role and replica."""

    def nested() -> str:
        before = site.who()
        inside = site.client().post("/").text
        return f"{before} {inside} {site.who()}"

    before, inside, after = answer(site, nested).split()
    assert before == after
    assert before in REPLICAS
    assert inside == "master"


def test_unextended_application() -> None:
    """An application without any database is none of this package's business."""
    app = Flask("plain")
    app.add_url_rule("/", "page", lambda: "hello")
    assert app.test_client().get("/").text == "hello"
