"""Who reads and writes where, while all servers are well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.postgres.support import STANDBYS, WHO

if TYPE_CHECKING:
    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres


def test_rotation(build: Build) -> None:
    """Thirty reads by fresh clients are ten for each of three standbys."""
    assert build().count(30) == dict.fromkeys(STANDBYS, 10)


def test_weights(build: Build) -> None:
    """Weights of 5, 3 and 1 share ninety reads as fifty, thirty and ten."""
    weights = {"slave_1": 5, "slave_2": 3, "slave_3": 1}
    shares = build(REPLICATED_WEIGHTS=weights).count(90)
    assert shares == {"standby_1": 50, "standby_2": 30, "standby_3": 10}


def test_one_request_one_standby(site: Site) -> None:
    """All reads of one request are answered by the same standby."""
    for _ in range(12):
        first, last = site.get().servers
        assert first == last


def test_write(site: Site, healthy_cluster: Cluster) -> None:
    """A write reaches the primary, and the standbys through replication."""
    assert site.post("one").servers == ["primary", "primary"]
    rows = "select text from item"
    assert healthy_cluster.primary.execute(rows) == [("one",)]
    healthy_cluster.wait_replicated()
    for _ in STANDBYS:
        answer = site.get()
        assert answer.texts == ["one"]
        assert answer.servers[0] in STANDBYS


def test_write_in_a_read(site: Site, healthy_cluster: Cluster) -> None:
    """A GET that writes goes on with the primary and sees what it wrote."""
    for standby in healthy_cluster.standbys:
        standby.pause_replay()

    def write() -> dict[str, list[str]]:
        servers = [site.who().server]
        site.db.session.add(site.item(text="hidden"))
        site.db.session.commit()
        texts = site.texts()
        return {"servers": [*servers, site.who().server], "texts": texts}

    site.app.add_url_rule("/write", "write", write)
    for number in range(1, 4):
        client = site.client()
        first, last = (answer := site.get(client, "/write")).servers
        assert first in STANDBYS
        assert last == "primary"
        assert answer.texts == ["hidden"] * number
        assert site.get(client).servers == ["primary", "primary"]


def test_read_your_write(build: Build, healthy_cluster: Cluster) -> None:
    """The writer sees its row while standbys lag; others read the lagging standbys."""
    site = build(REPLICATED_PIN_SECONDS=120)
    for standby in healthy_cluster.standbys:
        standby.pause_replay()
    writer, other = site.client(), site.client()
    site.post("fresh", writer)
    for standby in healthy_cluster.standbys:
        assert standby.execute("select text from item") == []
    for _ in STANDBYS:
        own = site.get(writer)
        assert own.texts == ["fresh"]
        assert own.servers == ["primary", "primary"]
        stale = site.get(other)
        assert stale.texts == []
        assert stale.servers[0] in STANDBYS
    for standby in healthy_cluster.standbys:
        standby.resume_replay()
    healthy_cluster.wait_replicated()
    assert site.get(other).texts == ["fresh"]


def test_rollback_pins_nobody(build: Build, healthy_cluster: Cluster) -> None:
    """A write that was rolled back leaves neither a row nor a pin."""
    site = build(REPLICATED_PIN_SECONDS=120)

    def give_up() -> str:
        site.db.session.add(site.item(text="gone"))
        site.db.session.flush()
        site.db.session.rollback()
        return ""

    site.app.add_url_rule("/give-up", "give_up", give_up, methods=["POST"])
    client = site.client()
    assert client.post("/give-up").status_code == 200
    assert site.get(client).servers[0] in STANDBYS
    assert healthy_cluster.primary.execute("select text from item") == []


def test_engine(site: Site) -> None:
    """Core reads through ``db.engine`` in a GET reach standbys, others the primary."""

    def core() -> dict[str, list[str]]:
        with site.db.engine.connect() as connection:
            return {"servers": [connection.execute(WHO).one()[0]], "texts": []}

    site.app.add_url_rule("/core", "core", core)
    servers = [site.get(path="/core").servers[0] for _ in range(6)]
    assert sorted(servers) == sorted([*STANDBYS, *STANDBYS])
    with site.app.app_context():
        assert core()["servers"] == ["primary"]


def test_savepoint_in_a_read(site: Site) -> None:
    """Reads in a savepoint are answered by a standby like any others."""

    def read() -> dict[str, list[str]]:
        servers = [site.who().server]
        with site.db.session.begin_nested():
            servers.append(site.who().server)
        return {"servers": [*servers, site.who().server], "texts": []}

    site.app.add_url_rule("/read", "read", read)
    for _ in STANDBYS:
        first, *others = site.get(path="/read").servers
        assert first in STANDBYS
        assert others == [first, first]


def test_savepoint_pins_nobody(build: Build) -> None:
    """A POST that only reads in a savepoint pins nobody."""
    site = build(REPLICATED_PIN_SECONDS=120)

    def read() -> str:
        with site.db.session.begin_nested():
            server = site.who().server
        site.db.session.commit()
        return server

    site.app.add_url_rule("/read", "read", read, methods=["POST"])
    client = site.client()
    assert client.post("/read").text == "primary"
    assert site.get(client).servers[0] in STANDBYS


def test_two_phases_pin_nobody(build: Build) -> None:
    """A POST that only reads pins nobody when it commits in two phases."""
    site = build(twophase=True, REPLICATED_PIN_SECONDS=120)

    def read() -> str:
        server = site.who().server
        site.db.session.commit()
        return server

    site.app.add_url_rule("/read", "read", read, methods=["POST"])
    client = site.client()
    assert client.post("/read").text == "primary"
    assert site.get(client).servers[0] in STANDBYS
