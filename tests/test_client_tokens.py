"""What a client's requests and responses carry, where the database has positions."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Response
from flask.sessions import SecureCookieSessionInterface

from flask_replicated import (
    guarantee,
    use_slave_database,
    using_master,
    using_slave,
    using_token,
)
from flask_replicated.consistency import sources
from flask_replicated.consistency.positions import LogPosition
from flask_replicated.consistency.sources import register_positions
from flask_replicated.consistency.tokens import Mark, Token, bind_id, decode, encode
from flask_replicated.routing.state import STATE
from tests.balancers.support import FakeClock
from tests.support import (
    COOKIE,
    SECRET,
    Build,
    Site,
    build_fixture,
    get_with_pin,
    make_file,
    pin_of,
    sqlite_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flask import Request
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from flask_replicated import FlaskReplicated

build = build_fixture


class Counting:
    """Positions for SQLite files: how many entries there are.

    Attributes:
        asked: How often the primary was asked.
    """

    def __init__(self) -> None:
        self.asked = 0

    def position(self, connection: Any) -> LogPosition:
        """Return what a primary has."""
        self.asked += 1
        return self.replayed(connection)

    def replayed(self, connection: Any) -> LogPosition:
        """Return what a replica has."""
        with closing(connection.cursor()) as cursor:
            (number,) = cursor.execute("SELECT count(*) FROM entry").fetchone()
        return LogPosition(0, 0, {0: number})


@pytest.fixture
def counting() -> Iterator[Counting]:
    """Let SQLite have positions."""
    source = Counting()
    register_positions("sqlite", source)
    yield source
    sources._SOURCES.pop("sqlite", None)


@pytest.fixture
def site(build: Build, counting: Counting) -> Site:
    """Give an application with positions, and two replicas that have nothing yet."""
    return build(("slave_1", "slave_2"), REPLICATED_PROBE_INTERVAL=0)


def ask(
    site: Site,
    view: Callable[[], Any],
    client: FlaskClient | None = None,
    method: str = "GET",
    **more: Any,
) -> TestResponse:
    """Return the answer of a view, to a fresh client if none is given."""
    # Flask allows no new route after the first request.
    site.app.view_functions["who"] = view
    response = (client or site.client()).open("/", method=method, **more)
    assert response.status_code == 200, response.text
    return response


def replay(site: Site, *names: str) -> None:
    """Give replicas what the primary has."""
    rows = [(text,) for text in site.entries()]
    for name in names:
        with closing(sqlite3.connect(site.folder / f"{name}.db")) as connection:
            connection.execute("DELETE FROM entry")
            connection.executemany("INSERT INTO entry (text) VALUES (?)", rows)
            connection.commit()


def replicated(site: Site) -> FlaskReplicated:
    """Return its extension."""
    found: FlaskReplicated = site.app.extensions["replicated"]
    return found


def told(pin: str | None, bind: str | None = None) -> int | None:
    """Return the position that a token says for a bind."""
    token = decode(pin or "", [SECRET]) or Token()
    mark = token.get(bind_id(bind))
    return None if mark is None or mark.position is None else mark.position.streams[0]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as a warning or worse."""
    return [one.getMessage() for one in caplog.records if one.levelno >= 30]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Give the clock that tokens go by."""
    clock = FakeClock(1_700_000_000.0)
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def token(site: Site) -> str:
    """Give a token for an entry that no replica has."""
    with site.app.app_context(), using_token(None):
        site.write()
        return replicated(site).token()


class TestPosition:
    """A pin with a position is a demand, and no role."""

    def test_served_by_who_has_it(self, site: Site) -> None:
        """The replica that has the write serves its client, and no other."""
        client = site.client()
        assert told(pin_of(client.post("/write"))) == 1
        assert client.get("/").text == "master"
        replay(site, "slave_2")
        assert {client.get("/").text for _ in range(4)} == {"slave_2"}
        assert {site.get() for _ in range(4)} == {"slave_1", "slave_2"}

    def test_lifetime(self, build: Build, counting: Counting, clock: FakeClock) -> None:
        """REPLICATED_POSITION_SECONDS ends it, in the browser and at the server."""
        site = build(("slave_1",), REPLICATED_POSITION_SECONDS=60)
        client = site.client()
        response = client.post("/write")
        assert "; Max-Age=60;" in response.headers["Set-Cookie"]
        pin = pin_of(response)
        clock.advance(59)
        assert get_with_pin(site.app, pin) == "master"
        clock.advance(2)
        assert get_with_pin(site.app, pin) == "slave_1"

    def test_key_rotation(self, build: Build, counting: Counting) -> None:
        """A pin that SECRET_KEY_FALLBACKS can read counts, and one of neither not."""
        site = build(("slave_1",))
        pin = pin_of(site.client().post("/write"))
        site.app.config.update(SECRET_KEY="new", SECRET_KEY_FALLBACKS=[SECRET])
        assert get_with_pin(site.app, pin) == "master"
        site.app.config["SECRET_KEY_FALLBACKS"] = None
        assert get_with_pin(site.app, pin) == "slave_1"

    def test_two_applications(
        self, build: Build, counting: Counting, tmp_path: Path
    ) -> None:
        """A pin of one application is nothing to another with another key."""
        first = build(("slave_1",), folder=tmp_path)
        second = build(("slave_1",), folder=tmp_path, SECRET_KEY="another")
        pin = pin_of(first.client().post("/write"))
        assert get_with_pin(first.app, pin) == "master"
        assert get_with_pin(second.app, pin) == "slave_1"

    def test_what_the_process_knows(self, site: Site) -> None:
        """A response carries what others have committed before it left, too."""

        def view() -> str:
            site.write()
            site.client().post("/write")
            return ""

        assert told(pin_of(ask(site, view, method="POST"))) == 2

    def test_of_another_bind(
        self, build: Build, counting: Counting, tmp_path: Path
    ) -> None:
        """So it does of a bind that the client carries and the request only read."""
        files = {
            name: sqlite_url(make_file(tmp_path, name))
            for name in ("analytics", "analytics_slave_1")
        }
        site = build(("slave_1",), binds=files)

        def add() -> str:
            with site.db.engines["analytics"].begin() as connection:
                connection.execute(sa.text("INSERT INTO entry (text) VALUES ('a')"))
            return ""

        client = site.client()
        ask(site, add, client, "POST")

        def view() -> str:
            site.write()
            ask(site, add, method="POST")
            return ""

        assert told(pin_of(ask(site, view, client, "POST")), "analytics") == 2

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    def test_readers(self, site: Site, method: str) -> None:
        """A request that only reads sets no cookie, with a pin or without."""
        client = site.client()
        client.post("/write")
        for one in (client, site.client()):
            response = one.open("/", method=method)
            assert not {"Set-Cookie", "Cache-Control", "Vary"} & {
                *response.headers.keys()
            }

    def test_decorated(self, site: Site) -> None:
        """``@use_slave_database`` and ``using_slave()`` do not lift what it demands."""
        client = site.client()
        client.post("/write")

        @use_slave_database
        def decorated() -> str:
            with using_slave():
                return site.who() + " " + site.who()

        assert ask(site, decorated, client).text == "master master"


class TestImpossible:
    """A position that the primary has never had."""

    @pytest.fixture
    def ahead(self, site: Site, token: str) -> str:
        """Give a token for what the primary has lost."""
        with closing(sqlite3.connect(site.folder / "master.db")) as connection:
            connection.execute("DELETE FROM entry")
            connection.commit()
        return token

    def test_in_a_cookie(
        self, site: Site, ahead: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is ignored, without a warning: replicas serve all of the request."""

        def view() -> str:
            first = site.role()
            site.db.session.rollback()
            return f"{first} {site.role()}"

        client = site.client()
        client.set_cookie(COOKIE, ahead)
        assert ask(site, view, client).text == "replica replica"
        assert not warned(caplog)

    def test_in_a_block(
        self, site: Site, ahead: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The primary serves, in a request and outside; a warning says so, once."""

        def view() -> str:
            with using_token(ahead):
                return site.who()

        client = site.client()
        client.set_cookie(COOKIE, ahead)
        assert ask(site, view).text == ask(site, view, client).text == "master"
        with site.app.app_context(), using_slave():
            assert view() == "master"
        assert [one[:24] for one in warned(caplog)] == ["using_token() was given "]

    def test_in_a_shared_store(
        self, build: Build, counting: Counting, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The primary serves, and a warning says so."""
        ahead = Mark(LogPosition(0, 0, {0: 9}), time.time())
        store = Kept(encode(Token({bind_id(None): ahead}), [SECRET]))
        site = build(REPLICATED_PIN_STORE=store)
        assert [site.get(), site.get()] == ["master", "master"]
        assert warned(caplog) == ["a client's token cannot be read: the primary serves"]


class Kept:
    """A store that has one token for everybody.

    Args:
        text: What it has.

    Attributes:
        calls: What it was asked.
    """

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.calls: list[str] = []

    def remember(self, _response: object, token: str) -> None:
        """Keep a token."""
        self.calls.append("remember")
        self.text = token

    def recall(self, _request: object) -> str:
        """Return it."""
        self.calls.append("recall")
        return self.text


class Broken(Kept):
    """A store that does not answer."""

    def remember(self, _response: object, _token: str) -> None:
        """Fail."""
        raise ConnectionError("no store")

    def recall(self, _request: object) -> str:
        """Fail."""
        raise ConnectionError("no store")


class TestStores:
    """Where the token is."""

    def test_asked_once(self, build: Build, counting: Counting) -> None:
        """A request asks its store once, and tells it once, however much it does."""
        store = Kept()
        site = build(("slave_1",), REPLICATED_PIN_STORE=store)

        def view() -> str:
            site.who()
            site.write()
            site.write()
            replicated(site).token()
            return site.who()

        ask(site, view, method="POST")
        assert store.calls == ["recall", "remember"]
        assert site.get() == "master"

    @pytest.mark.parametrize("config", [{"REPLICATED_GUARANTEE": "none"}, {}])
    def test_not_asked(
        self, build: Build, counting: Counting, config: dict[str, Any]
    ) -> None:
        """Where no pin counts, it is not asked."""
        store = Kept()
        site = build(("slave_1",), REPLICATED_PIN_STORE=store, **config)

        @guarantee("none")
        def view() -> str:
            return site.who()

        assert ask(site, view).text == "slave_1"
        assert not store.calls

    def test_in_the_database(
        self, build: Build, counting: Counting, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A store may use the view's session: the primary, and it pins nobody."""

        class Table:
            """Keeps a token in place of the marker's name."""

            def remember(self, _response: object, token: str) -> None:
                update = sa.update(shop.marker).values(name=token)
                shop.db.session.execute(update)
                shop.db.session.commit()

            def recall(self, _request: object) -> str:
                found = shop.who()
                return "" if found == "master" else found

        shop = build(("slave_1",), REPLICATED_PIN_STORE=Table())
        decorated = use_slave_database(shop.who)
        assert ask(shop, decorated).text == ask(shop, shop.who).text == "slave_1"

        def write() -> str:
            shop.write()
            return ""

        assert "Set-Cookie" not in ask(shop, write, method="POST").headers
        for view in (decorated, shop.who):
            assert told(ask(shop, view).text) == 1
        replay(shop, "slave_1")
        for view in (decorated, shop.who):
            assert ask(shop, view).text == "slave_1"
        assert not warned(caplog)

    def test_that_fails(
        self, build: Build, counting: Counting, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The primary serves, as it is not known what clients must see: logged once."""
        site = build(("slave_1",), REPLICATED_PIN_STORE=Broken())
        assert [site.get() for _ in range(6)] == ["master"] * 6
        assert [one[:26] for one in warned(caplog)] == ["the pin store Broken fails"]

    def test_that_fails_lifted(self, build: Build, counting: Counting) -> None:
        """Where no pin counts, that does not matter."""
        site = build(("slave_1",), REPLICATED_PIN_STORE=Broken())

        def view() -> str:
            with guarantee("none"):
                inside = site.who()
            return f"{inside} {site.who()}"

        assert ask(site, view).text == "slave_1 master"

    def test_takes_over(self, build: Build, counting: Counting) -> None:
        """Where it does not take a token, cookie and header of the response have it."""
        site = build(("slave_1",), REPLICATED_PIN_STORE=Broken())
        response = site.client().post("/write")
        assert told(pin_of(response)) == told(response.headers["Replicated-Position"])
        assert response.headers["Vary"] == "Replicated-Position"

    def test_session(self, build: Build, counting: Counting) -> None:
        """The session has it; what is committed after it was saved is in the cookie."""
        site = build(("slave_1",), REPLICATED_PIN_STORE="session")
        client = site.client()
        assert pin_of(client.post("/write")) is None
        with client.session_transaction() as stored:
            assert told(stored["_replicated_pin"]) == 1
        assert client.get("/").text == "master"

    def test_after_the_session(self, build: Build, counting: Counting) -> None:
        """What is committed after the session was saved is in the cookie, with that."""
        site = build(("slave_1",), REPLICATED_PIN_STORE="session")

        class Saves(SecureCookieSessionInterface):
            """Writes when it has saved."""

            def save_session(self, *args: Any) -> None:
                """Save the session."""
                super().save_session(*args)
                site.write()

        client = site.client()
        client.post("/write")
        site.app.session_interface = Saves()
        response = client.post("/write")
        assert told(pin_of(response)) == 3
        with client.session_transaction() as stored:
            assert told(stored["_replicated_pin"]) == 2

    def test_session_is_private(self, build: Build, counting: Counting) -> None:
        """A GET whose session gets a token is kept from shared caches, too."""
        site = build(
            ("slave_1",),
            REPLICATED_PIN_STORE="session",
            REPLICATED_GUARANTEE="monotonic",
        )
        response = site.client().get("/")
        assert response.headers["Cache-Control"] == "private"
        assert response.headers.getlist("Vary") == ["Cookie"]

    def test_session_cannot_be_saved(
        self, build: Build, counting: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What fails on the way to a session fails no response."""
        site = build(("slave_1",), REPLICATED_PIN_STORE="session")
        responses = site.app.extensions[STATE].responses

        def fail(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(responses.tokens, "remember", fail)
        assert site.client().post("/write").status_code == 200

    def test_header(self, build: Build, counting: Counting) -> None:
        """The header goes there and back, and `Vary` names it; there is no cookie."""
        site = build(("slave_1",), REPLICATED_PIN_STORE="header")
        response = site.client().post("/write")
        pin = response.headers["Replicated-Position"]
        assert (told(pin), response.headers["Vary"]) == (1, "Replicated-Position")
        assert pin_of(response) is None
        for sent in ([pin], ["x," + pin], ["x", pin]):
            headers = [("Replicated-Position", one) for one in sent]
            assert site.client().get("/", headers=headers).text == "master"
        assert site.get() == "slave_1"

    def test_header_and_shared_caches(self, build: Build, counting: Counting) -> None:
        """`Vary` names the header once, where a response depends on it alone."""
        site = build(("slave_1",), REPLICATED_PIN_STORE="header")
        site.app.add_url_rule("/still", view_func=lambda: "nothing is read")
        client = site.client()
        pin = {
            "Replicated-Position": client.post("/write").headers["Replicated-Position"]
        }
        for method, path, headers in (
            ("GET", "/", {}),
            ("GET", "/", pin),
            ("POST", "/write", {}),
            ("POST", "/write", pin),
        ):
            response = client.open(path, method=method, headers=headers)
            assert response.headers.getlist("Vary") == ["Replicated-Position"]
        assert "Vary" not in client.get("/still", headers=pin).headers


class Cache(dict[str, str]):
    """A cache that all clients share."""

    def set(self, key: str, value: str, *, timeout: int) -> None:
        """Keep a value."""
        assert timeout > 0
        self[key] = value


class TestKey:
    """``REPLICATED_PIN_KEY`` may read the database itself."""

    @pytest.fixture
    def calls(self) -> list[str]:
        """Give where each call of the key has read."""
        return []

    @pytest.fixture
    def shop(self, build: Build, counting: Counting, calls: list[str]) -> Site:
        """Give an application whose key reads, with an entry on the primary alone."""

        def key() -> str:
            calls.append(shop.who())
            return "ann"

        shop = build(
            REPLICATED_GUARANTEE="monotonic",
            REPLICATED_PIN_STORE=Cache(),
            REPLICATED_PIN_KEY=key,
        )
        # Not by the application, which would know of it.
        with closing(sqlite3.connect(shop.folder / "master.db")) as connection:
            connection.execute("INSERT INTO entry (text) VALUES ('new')")
            connection.commit()
        return shop

    def test_reads(self, shop: Site, calls: list[str]) -> None:
        """It reads from the primary, once; what it has read pins nobody there."""
        for _ in range(3):
            view = ask(shop, lambda: f"{shop.role()} {shop.role()}")
            assert view.text == "replica replica"
        assert calls == ["master"] * 3

    @pytest.mark.parametrize("how", [use_slave_database, using_slave()])
    def test_before_a_session_connects(
        self, shop: Site, calls: list[str], caplog: pytest.LogCaptureFixture, how: Any
    ) -> None:
        """It may use the view's own session, however a replica was asked for."""
        assert ask(shop, how(shop.role)).text == "replica"
        assert (calls, warned(caplog)) == (["master"], [])

    def test_without_a_server(self, shop: Site, calls: list[str]) -> None:
        """In a request that no server waits for it is called once, too."""
        with shop.app.test_request_context():
            assert shop.role() == "replica"
        assert calls == ["master"]

    def test_commits(self, build: Build, counting: Counting) -> None:
        """What the view has written before pins, though the key commits it."""

        def key() -> str:
            shop.db.session.commit()
            return "ann"

        store = Cache()
        shop = build(("slave_1",), REPLICATED_PIN_STORE=store, REPLICATED_PIN_KEY=key)

        def view() -> str:
            shop.db.session.add(shop.entry(text="written"))
            shop.db.session.flush()
            return replicated(shop).token()

        ask(shop, view, method="POST")
        assert [told(one) for one in store.values()] == [1]
        assert ask(shop, shop.who).text == "master"

    def test_nobody(self, build: Build, counting: Counting) -> None:
        """Nobody's token is in the client's cookie; the store is not asked."""
        store = Cache()
        site = build(
            ("slave_1",), REPLICATED_PIN_STORE=store, REPLICATED_PIN_KEY=lambda: None
        )
        client = site.client()
        assert told(pin_of(client.post("/write"))) == 1
        assert (client.get("/").text, site.get(), store) == ("master", "slave_1", {})


class TestToken:
    """``token()`` and ``using_token()``."""

    def test_nothing(self, site: Site) -> None:
        """Before the first commit, and outside requests and blocks, there is none."""

        def view() -> str:
            site.who()
            site.db.session.add(site.entry(text="pending"))
            site.db.session.flush()
            return replicated(site).token()

        assert not ask(site, view, method="POST").text
        with site.app.app_context():
            site.write()
            assert not replicated(site).token()

    def test_in_a_request(self, site: Site) -> None:
        """It has what the request has committed, and what its client carries."""
        client = site.client()
        client.post("/write")
        assert told(ask(site, replicated(site).token, client).text) == 1

        def view() -> str:
            site.write()
            return replicated(site).token()

        assert told(ask(site, view, method="POST").text) == 2

    @pytest.mark.parametrize("method", ["GET", "POST"])
    @pytest.mark.parametrize("seconds", [0, 5])
    def test_without_pins(
        self, build: Build, counting: Counting, seconds: int, method: str
    ) -> None:
        """It works with REPLICATED_PIN_SECONDS = 0, and has nothing of pin=False."""
        site = build(("slave_1",), REPLICATED_PIN_SECONDS=seconds)

        @using_master(pin=False)
        def quietly() -> str:
            site.write()
            return replicated(site).token()

        assert not ask(site, quietly, method=method).text

        def view() -> str:
            site.write()
            return replicated(site).token()

        response = ask(site, view, method=method)
        assert (told(response.text), pin_of(response) is None) == (2, not seconds)
        with site.app.app_context(), using_slave():
            assert site.who() == "slave_1"
            with using_token(response.text):
                assert site.who() == "master"

    def test_elsewhere(self, site: Site, token: str) -> None:
        """Without an application there is none, but a block's is not lost silently."""
        extension = replicated(site)
        assert extension.token() == ""
        with using_token(token), pytest.raises(RuntimeError, match="app_context"):
            extension.token()

    def test_nested(self, site: Site) -> None:
        """A block has what was committed in blocks inside it."""
        with site.app.app_context():
            with using_token(None):
                with using_token(None):
                    site.write()
                assert told(replicated(site).token()) == 1
            assert not replicated(site).token()

    def test_adds_up(self, site: Site, token: str) -> None:
        """In a block it has what that was given, and so has an inner one."""
        with site.app.app_context(), using_token(token), using_token(None):
            assert told(replicated(site).token()) == 1
            site.write()
            assert told(replicated(site).token()) == 2

    def test_does_not_age(self, site: Site, clock: FakeClock) -> None:
        """A position counts in a block however old it is."""
        with site.app.app_context(), using_token(None):
            site.write()
            token = replicated(site).token()
        clock.advance(100_000)
        with site.app.app_context(), using_slave():
            with using_token(token):
                assert site.who() == "master"
            site.db.session.rollback()
            assert site.who() != "master"

    def test_time_is_over(self, build: Build, clock: FakeClock) -> None:
        """Where there are no positions, it counts for the time of a pin."""
        site = build()
        with site.app.app_context(), using_slave():
            with using_master(), using_token(None):
                site.write()
                token = replicated(site).token()
            with using_token(token):
                assert site.role() == "primary"
            clock.advance(6)
            site.db.session.rollback()
            with using_token(token):
                assert site.role() == "replica"

    def test_needs_no_connection(self, build: Build) -> None:
        """Where there are no positions, the primary is not asked for one."""
        site = build(REPLICATED_PIN_SECONDS=0)

        def view() -> str:
            site.write()
            site.who()
            return replicated(site).token()

        connects: list[object] = []
        with site.app.app_context():
            real = site.app.extensions[STATE].routes[None].real
        sa.event.listen(real, "checkout", lambda *_: connects.append(1))
        assert decode(ask(site, view, method="POST").text, [SECRET])
        assert len(connects) == 2  # for the write, and for the read

    @pytest.mark.parametrize("inside", [False, True])
    def test_an_open_transaction(self, site: Site, token: str, inside: bool) -> None:
        """Reads in a block see what it demands, though a replica was read before."""

        def view() -> str:
            found = [site.role()]
            with using_token(token):
                found.append(site.role())
            return " ".join([*found, site.role()])

        if inside:
            assert ask(site, view).text == "replica primary primary"
        else:
            with site.app.app_context(), using_slave():
                assert view() == "replica primary primary"

    def test_the_pin_after_a_block(self, site: Site) -> None:
        """Reads after a ``guarantee("none")`` block see the client's writes."""
        client = site.client()
        client.post("/write")

        def view() -> str:
            with guarantee("none"):
                found = [site.role(), site.role()]
            return " ".join([*found, site.role()])

        assert ask(site, view, client).text == "replica replica primary"


class TestGuarantee:
    """Which guarantee decides whether a write pins, and a pin counts."""

    @pytest.mark.parametrize(
        ("outside", "inside"),
        [("none", "read_your_writes"), ("read_your_writes", "none")],
    )
    def test_of_the_commit(
        self, build: Build, counting: Counting, outside: str, inside: str
    ) -> None:
        """That which holds where a write is committed decides whether it pins."""
        site = build(("slave_1",), REPLICATED_GUARANTEE=outside)
        for wanted in (outside, inside):

            @guarantee(wanted)
            def view() -> str:
                site.write()
                return ""

            pinned = pin_of(ask(site, view, method="POST")) is not None
            assert pinned == (wanted != "none")

    def test_no_empty_cookie(self, build: Build) -> None:
        """A pin that has no time sets no cookie."""
        site = build(("slave_1",), REPLICATED_PIN_SECONDS=0)

        @guarantee("read_your_writes")
        def view() -> str:
            site.write()
            return ""

        assert "Set-Cookie" not in ask(site, view, method="POST").headers

    def test_asked_once(self, build: Build) -> None:
        """However many blocks a request enters, REPLICATED_IS_READ is asked once."""
        calls: list[Request] = []

        def is_read(request: Request) -> bool:
            calls.append(request)
            return True

        site = build(("slave_1",), REPLICATED_IS_READ=is_read)
        client = site.client()
        client.post("/write")
        calls.clear()

        def view() -> str:
            found = []
            for _ in range(3):
                with guarantee("none"):
                    found.append(site.role())
                with using_token(None):
                    found.append(site.role())
            return " ".join(found)

        assert ask(site, view, client).text == " ".join(["replica primary"] * 3)
        assert len(calls) == 1


class TestRenewal:
    """Reads that are on the primary for what they must see alone renew no pin."""

    @pytest.fixture
    def suspected(self) -> Callable[[Site], None]:
        """Give a read that may write, for all that is known."""

        def read(site: Site) -> None:
            unknown = sa.text("SELECT shout(name) FROM marker")
            with contextlib.suppress(sa.exc.DBAPIError):  # SQLite does not know it
                site.db.session.execute(unknown)

        return read

    def polled(self, site: Site, read: Callable[[], object]) -> str | None:
        """Return what pins a client anew that reads after its write."""
        client = site.client()
        client.post("/write")

        def view() -> str:
            read()
            site.db.session.commit()
            return ""

        return pin_of(ask(site, view, client))

    def test_suspicion(self, site: Site, suspected: Callable[[Site], None]) -> None:
        """What may write does not, where a replica would have answered it."""
        assert self.polled(site, lambda: suspected(site)) is None

        @using_master()
        def asked_for() -> None:
            suspected(site)

        assert self.polled(site, asked_for) is not None

    def test_drivers_connection(self, site: Site) -> None:
        """A driver's connection does not, if it only stands in for a replica's."""

        def read() -> None:
            with site.db.engine.connect() as connection:
                assert connection.connection.dbapi_connection

        assert self.polled(site, read) is None

    def test_is_read(
        self, build: Build, counting: Counting, suspected: Callable[[Site], None]
    ) -> None:
        """What REPLICATED_IS_READ reads itself does not, nor does it begin a pin."""

        def is_read(_: Request) -> bool:
            suspected(shop)
            return True

        shop = build(("slave_1",), REPLICATED_IS_READ=is_read)
        assert self.polled(shop, shop.who) is None
        assert pin_of(ask(shop, shop.who)) is None


class TestMonotonic:
    """What a client has read, it must see again."""

    @pytest.fixture
    def site(self, build: Build, counting: Counting) -> Site:
        """Give an application that guarantees that."""
        return build(REPLICATED_GUARANTEE="monotonic")

    def test_rises(self, site: Site) -> None:
        """A cookie is set only where there is more to see than before."""
        client = site.client()
        first = client.get("/")
        assert (told(pin_of(first)), first.headers["Cache-Control"]) == (0, "private")
        assert first.headers.getlist("Vary") == ["Cookie"]
        again = client.get("/")
        assert (again.text, pin_of(again)) == (first.text, None)
        assert not {"Cache-Control", "Vary"} & {*again.headers.keys()}

    def test_without_positions(self, build: Build) -> None:
        """The server that a client reads from is known for as long as a position is."""
        site = build(REPLICATED_GUARANTEE="monotonic")
        client = site.client()
        first = client.get("/")
        assert "; Max-Age=300;" in first.headers["Set-Cookie"]
        assert {client.get("/").text for _ in range(5)} == {first.text}

    def test_open_snapshot(self, build: Build, counting: Counting) -> None:
        """A block inside an open transaction stays there, if that is no older."""
        site = build()  # SQLite's transactions count as serializable

        def view() -> str:
            before = site.who()
            with guarantee("monotonic"):
                assert site.who() == before
            return before

        client = site.client()
        first = ask(site, view, client)
        assert {ask(site, guarantee("monotonic")(site.who), client).text} == {
            first.text
        }

    @pytest.mark.parametrize(
        ("headers", "right"),
        [
            ({"Cache-Control": "public"}, None),
            ({"Cache-Control": "PUBLIC"}, None),
            ({"Cache-Control": "s-maxage=5"}, None),
            ({"Cache-Control": "no-cache, Max-Age=5"}, None),
            ({"Cache-Control": ["no-cache", "public"]}, None),
            ({"Expires": "Thu, 01 Jan 2099 00:00:00 GMT"}, None),
            ({"Cache-Control": "max-age=5, private"}, ["max-age=5, private"]),
            ({"Cache-Control": "no-store"}, ["no-store"]),
            ({"Cache-Control": "no-cache"}, ["no-cache", "private"]),
            ({"Vary": "Accept, cookie"}, ["private"]),
        ],
    )
    def test_shared_caches(
        self, site: Site, headers: dict[str, Any], right: list[str] | None
    ) -> None:
        """What a shared cache may keep sets no cookie; what sets one, none keeps."""

        def view() -> Response:
            response = Response(site.who())
            for name, value in headers.items():
                for one in [value] if isinstance(value, str) else value:
                    response.headers.add(name, one)
            return response

        response = ask(site, view)
        assert (pin_of(response) is not None) == (right is not None)
        if right is not None:
            assert response.headers.getlist("Cache-Control") == right
            assert response.headers.getlist("Vary") == [headers.get("Vary", "Cookie")]
