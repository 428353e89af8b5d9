"""Writes that only the replica's server recognises: refused, repaired, learnt."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from flask import Blueprint

from flask_replicated import WriteOnReplicaError, using_slave
from tests.operations.hidden import hidden_write
from tests.support import REPLICAS, Build, Site, answer, build_fixture, pin_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from sqlalchemy.orm import scoped_session

pytestmark = pytest.mark.usefixtures("hidden_writes")

build = build_fixture

INSERT = "INSERT INTO entry (text) VALUES ('hidden') RETURNING text"


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


def slip(site: Site) -> str:
    """Write without looking like it."""
    return str(site.db.session.scalar(hidden_write(INSERT)))


def writers(site: Site) -> Counter[str]:
    """Return how often replicas have refused a write, by endpoint."""
    state = site.app.extensions["replicated"].state(site.app)
    found: Counter[str] = state.decider.writers
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged."""
    return [r.message for r in caplog.records if r.levelno >= logging.WARNING]


def add_page(site: Site, page: Callable[[], str]) -> None:
    """Serve a function at ``/page``, for GET and POST."""
    site.app.add_url_rule("/page", "page", page, methods=["GET", "POST"])


def slip_and_commit(site: Site) -> str:
    """Write first of all, commit, and say who serves after it."""
    slip(site)
    site.db.session.commit()
    return site.who()


WAYS: dict[str, Callable[[scoped_session[Any]], object]] = {
    "execute": lambda session: session.execute(hidden_write(INSERT)).all(),
    "scalar": lambda session: session.scalar(hidden_write(INSERT)),
    "scalars": lambda session: session.scalars(hidden_write(INSERT)).all(),
}


class TestFirstStatement:
    """The first statement of a transaction is run again on the primary."""

    @pytest.mark.parametrize("way", WAYS)
    def test_run_again(self, site: Site, way: str) -> None:
        """It is executed once, on the primary, and the view notices nothing."""

        def view() -> str:
            WAYS[way](site.db.session)
            site.db.session.commit()
            return "done"

        assert answer(site, view) == "done"
        assert site.entries() == ["hidden"]
        assert [site.entries(name) for name in REPLICAS] == [[], [], []]

    def test_latched(self, site: Site) -> None:
        """The rest of the request reads from the primary."""
        assert answer(site, lambda: f"{slip(site)} {site.who()}") == "hidden master"

    def test_pinned(self, site: Site) -> None:
        """A client whose write was repaired reads it in its next request."""
        add_page(site, lambda: slip_and_commit(site))
        client = site.client()
        assert pin_of(client.get("/page")) is not None
        assert client.get("/").text == "master"

    def test_rolled_back(self, site: Site) -> None:
        """A repaired write belongs to its transaction: a rollback undoes it."""

        def view() -> str:
            slip(site)
            site.db.session.rollback()
            return "done"

        answer(site, view)
        assert site.entries() == []

    def test_of_a_later_transaction(self, site: Site) -> None:
        """After a commit the transaction is another, and its first statement too."""

        def view() -> str:
            site.who()
            site.db.session.commit()
            return slip_and_commit(site)

        assert answer(site, view) == "master"
        assert site.entries() == ["hidden"]

    def test_in_a_savepoint(self, site: Site) -> None:
        """A savepoint that was set before is no statement that has seen anything."""

        def view() -> str:
            with site.db.session.begin_nested():
                slip(site)
            site.db.session.commit()
            return "done"

        assert answer(site, view) == "done"
        assert site.entries() == ["hidden"]

    def test_with_pending_objects(self, site: Site) -> None:
        """Objects that wait for a flush are written beside it, once."""

        def view() -> str:
            with site.db.session.no_autoflush:
                site.db.session.add(site.entry(text="pending"))
                slip(site)
            site.db.session.commit()
            return "done"

        answer(site, view)
        assert sorted(site.entries()) == ["hidden", "pending"]

    def test_without_an_endpoint(self, site: Site) -> None:
        """A write in the page for unknown URLs is repaired, and counted apart."""
        site.app.register_error_handler(404, lambda _: slip_and_commit(site))
        assert site.get("/no-such-page") == "master"
        assert site.entries() == ["hidden"]
        assert writers(site) == {"(no endpoint)": 1}

    def test_in_a_blueprint(self, site: Site) -> None:
        """The endpoint of a blueprint is counted under its full name."""
        blueprint = Blueprint("part", __name__)
        blueprint.add_url_rule("/part", "page", lambda: slip_and_commit(site))
        site.app.register_blueprint(blueprint)
        assert site.get("/part") == "master"
        assert writers(site) == {"part.page": 1}


class TestLaterStatement:
    """Anything later raises: what was seen before may be older than the primary."""

    def test_error(self, site: Site) -> None:
        """The error names the view, the statement, the replica and the decorators."""

        def view() -> str:
            served = site.who()
            with pytest.raises(WriteOnReplicaError) as caught:
                slip(site)
            error = caught.value
            assert error.view == "view"
            assert error.__cause__ is not None
            assert served in error.why
            return str(error)

        message = answer(site, view)
        for part in ("'view'", INSERT, "@changes_database", "@use_master_database"):
            assert part in message
        assert site.entries() == []

    def test_learnt(self, site: Site) -> None:
        """The endpoint's next request starts on the primary, and works."""

        def page() -> str:
            before = site.who()
            return f"{before} {slip_and_commit(site)}"

        add_page(site, page)
        assert site.client().get("/page").status_code == 500
        assert site.get("/page") == "master master"
        assert site.entries() == ["hidden"]

    def test_core(self, site: Site) -> None:
        """A connection of one's own is never moved: it raises, and is learnt from."""

        def page() -> str:
            with site.db.engine.connect() as connection:
                connection.execute(hidden_write(INSERT))
                connection.commit()
            return "done"

        add_page(site, page)
        assert site.client().get("/page").status_code == 500
        assert writers(site) == {"page": 1}
        assert site.get("/page") == "done"
        assert site.entries() == ["hidden"]

    def test_inside_using_slave(self, site: Site) -> None:
        """A block that insists on a replica gets its error, first statement or not."""

        def view() -> str:
            with using_slave(), pytest.raises(WriteOnReplicaError, match="'view'"):
                slip(site)
            return "done"

        assert answer(site, view) == "done"
        assert site.entries() == []

    def test_outside_a_request(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A job's error says so; there is no endpoint to learn about."""
        with (
            site.app.app_context(),
            using_slave(),
            pytest.raises(WriteOnReplicaError, match="code outside a request"),
        ):
            slip(site)
        assert not writers(site)
        assert not warnings(caplog)


class TestLearning:
    """An endpoint that was caught starts on the primary from then on."""

    def test_starts_on_the_primary(self, site: Site) -> None:
        """Its later requests read from the primary before they write."""

        def page() -> str:
            return site.who() if writers(site) else slip_and_commit(site)

        add_page(site, page)
        assert [site.get("/page") for _ in range(3)] == ["master"] * 3
        assert writers(site) == {"page": 1}

    def test_others_do_not(self, site: Site) -> None:
        """Other endpoints, and other applications, learn nothing from it."""
        add_page(site, lambda: slip_and_commit(site))
        site.get("/page")
        assert site.get("/") in REPLICAS

    def test_logged_once(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """One warning says which endpoint, which statement, and what to do."""
        add_page(site, lambda: slip_and_commit(site))
        for _ in range(3):
            site.get("/page")
        (message,) = warnings(caplog)
        for part in ("'page'", "INSERT INTO entry", "@changes_database", "from now on"):
            assert part in message
        assert "this one's write runs there too" in message

    def test_pins(self, site: Site) -> None:
        """Its later writes pin their clients, though they still look like reads."""
        add_page(site, lambda: slip_and_commit(site))
        site.get("/page")
        client = site.client()
        assert pin_of(client.get("/page")) is not None
        assert client.get("/").text == "master"

    def test_rollback_does_not_pin(self, site: Site) -> None:
        """A later request of it that rolls back pins nobody."""

        def page() -> str:
            slip(site)
            site.db.session.rollback()
            return "done"

        add_page(site, page)
        assert pin_of(site.client().get("/page")) is None
        assert pin_of(site.client().get("/page")) is None

    def test_off(self, build: Build, caplog: pytest.LogCaptureFixture) -> None:
        """Without learning each request starts on a replica and is repaired anew."""
        site = build(REPLICATED_LEARN_WRITERS=False)
        add_page(site, lambda: slip_and_commit(site))
        clients = [site.client() for _ in range(3)]
        assert [client.get("/page").text for client in clients] == ["master"] * 3
        assert writers(site) == {"page": 3}
        assert site.entries() == ["hidden"] * 3
        (message,) = warnings(caplog)
        assert "send it twice" in message

    def test_off_and_late(self, build: Build) -> None:
        """Without learning a view that reads first fails each time."""
        site = build(REPLICATED_LEARN_WRITERS=False)
        add_page(site, lambda: f"{site.who()} {slip(site)}")
        statuses = [site.client().get("/page").status_code for _ in range(2)]
        assert statuses == [500, 500]
        assert site.client().post("/page").text == "master hidden"
