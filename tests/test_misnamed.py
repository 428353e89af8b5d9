"""Binds and keys that are nearly called as they should be."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import ArgumentError

from flask_replicated import ConfigurationError, FlaskReplicated
from flask_replicated.settings.config import read_settings
from tests.support import Build, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from pathlib import Path

build = build_fixture

PRIMARY = "postgresql+psycopg://shop@primary.internal/shop"
COPY = "postgresql+psycopg://shop@replica.internal/shop"
OTHER = "postgresql+psycopg://shop@primary.internal/archive"


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flask_replicated")


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return what was logged at a level."""
    return [one.getMessage() for one in caplog.records if one.levelno == level]


def start(binds: dict[str, Any], uri: str | None = PRIMARY) -> None:
    """Register an application that never connects."""
    app = Flask("shop")
    app.config.update(SQLALCHEMY_DATABASE_URI=uri, SQLALCHEMY_BINDS=binds)
    SQLAlchemy(app)
    FlaskReplicated(app)


class TestSlips:
    """Names with one slip in them, beside a real replica."""

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("salve_2", "slave_2"),
            ("slvae_02", "slave_02"),
            ("lsave_4", "slave_4"),
            ("slav_2", "slave_2"),
            ("sslave_2", "slave_2"),
            ("slate_2", "slave_2"),
            ("replcia_2", "replica_2"),
            ("relica-2", "replica_2"),
            ("Replica2", "replica_2"),
            ("slave3", "slave_3"),
            ("slaves_3", "slave_3"),
            ("analytics_salve_1", "analytics_slave_1"),
            ("analytics_slave1", "analytics_slave_1"),
            ("analytcis_slave_1", "analytics_slave_1"),
        ],
    )
    def test_told(
        self, name: str, meant: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A WARNING names the bind, and what it should be called."""
        start({"slave_1": COPY, "analytics": PRIMARY, name: COPY})
        (line,) = said(caplog, logging.WARNING)
        assert f"SQLALCHEMY_BINDS[{name!r}]" in line
        assert f"did you mean {meant!r}?" in line

    @pytest.mark.parametrize(
        ("name", "bind"),
        [
            ("salve_3", "postgresql+psycopg://shop@bouncer/shop_copy_3"),
            ("replcia_3", OTHER),
            ("slav", "postgresql+psycopg://shop@bouncer/shop_copy"),
            ("slvae_3", "postgresql+psycopg://shop@bouncer"),
            (
                "repilca_3",
                {
                    "url": "postgresql+psycopg://",
                    "connect_args": {"service": "shop_copy_3"},
                },
            ),
        ],
    )
    def test_another_name_of_its_database(
        self, name: str, bind: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Behind a pooler each server may be a database of another name, or of none."""
        start({"replica_1": COPY, name: bind})
        (line,) = said(caplog, logging.WARNING)
        assert f"SQLALCHEMY_BINDS[{name!r}] (did you mean" in line

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("slave_us_3", None),
            ("replica-eu-west-3", None),
            ("slave_3_db", None),
            ("_replica_3", "replica_3"),
            ("shopslave_3", None),
            ("analyticsreplica_3", "analytics_replica_3"),
        ],
    )
    def test_more_in_the_name(
        self, name: str, meant: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nor may a replica's name have more in it than the bind that it copies."""
        start({"slave_1": COPY, "analytics": PRIMARY, name: COPY})
        (line,) = said(caplog, logging.WARNING)
        assert f"SQLALCHEMY_BINDS[{name!r}]" in line
        assert (f"did you mean {meant!r}?" in line) is (meant is not None)

    def test_a_name_that_is_taken(self, caplog: pytest.LogCaptureFixture) -> None:
        """A name that another bind has is not proposed."""
        start({"slave_1": COPY, "salve_1": COPY})
        (line,) = said(caplog, logging.WARNING)
        assert "SQLALCHEMY_BINDS['salve_1']" in line
        assert "did you mean" not in line

    @pytest.mark.parametrize(
        ("name", "url"),
        [
            ("sales", COPY),
            ("sales_2", COPY),
            ("slaves_archive", COPY),
            ("save", COPY),
            ("slate", COPY),
            ("enclave_1", COPY),
            ("raster", COPY),
            ("slate_1", "mysql+pymysql://shop@h/shop"),
            ("slaves_of_2020", COPY),
            ("replica_settings", OTHER),
            ("users", COPY),
            ("archive_2", OTHER),
            ("reads_3", OTHER),
            ("standby_2", COPY),
            ("reports", COPY),
        ],
    )
    def test_not_accused(
        self, name: str, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What has a name of its own, or another dialect, is an ordinary bind."""
        start({"slave_1": COPY, name: url})
        assert not caplog.records

    def test_a_bind_with_models(self, caplog: pytest.LogCaptureFixture) -> None:
        """Nor is one accused on which there are tables."""
        app = Flask("shop")
        app.config.update(
            SQLALCHEMY_DATABASE_URI=PRIMARY,
            SQLALCHEMY_BINDS={"slave_1": COPY, "salve_2": COPY},
        )
        db = SQLAlchemy()

        class Note(db.Model):  # type: ignore[name-defined,misc]  # made at run time
            __bind_key__ = "salve_2"
            id = db.Column(db.Integer, primary_key=True)

        db.init_app(app)
        FlaskReplicated(app)
        assert Note.__table__ is not None
        assert not caplog.records

    @pytest.mark.parametrize("name", ["mastre", "Master", "prmary", "primaryy"])
    def test_primary(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        """One that is nearly called as the primary is, and leads to it."""
        start({"slave_1": COPY, name: PRIMARY})
        (line,) = said(caplog, logging.WARNING)
        assert f"SQLALCHEMY_BINDS[{name!r}]" in line
        assert "Did you mean '" in line

    @pytest.mark.parametrize("name", ["mastre", "muster", "raster"])
    def test_another_than_the_primary(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that leads elsewhere is an ordinary bind."""
        start({"slave_1": COPY, name: OTHER})
        assert not caplog.records

    @pytest.mark.parametrize("name", ["master_2", "primary-1", "Primary1"])
    def test_a_numbered_primary(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """There is one primary, so the name that is proposed has no number."""
        start({"slave_1": COPY, name: PRIMARY})
        (line,) = said(caplog, logging.WARNING)
        assert f"Did you mean '{name[:-1].lower().rstrip('_-')}'?" in line

    def test_instead_of_the_primary(self) -> None:
        """Where there is no primary, the error names the bind that is meant so."""
        with pytest.raises(ConfigurationError, match=r"\['mastre'\].*mean 'master'\?"):
            start({"slave_1": COPY, "mastre": PRIMARY}, uri=None)

    @pytest.mark.parametrize(
        ("names", "need"),
        [(["slave_1"], "slave_1 needs a"), (["slave_1", "slave_2"], "slave_2 need a")],
    )
    def test_no_primary(self, names: list[str], need: str) -> None:
        """The error says which replicas have none."""
        with pytest.raises(ConfigurationError, match=f"{need} primary; set it"):
            start(dict.fromkeys(names, COPY), uri=None)


class TestNoReplica:
    """An application without any replica."""

    @pytest.mark.parametrize(
        "name",
        [
            "standby_1",
            "hot_standby",
            "read",
            "reader",
            "read_only",
            "ro",
            "db_ro",
            "replica1",
            "replicas",
            "follower_1",
            "secondary",
            "salve_1",
            "readers",
            "reader_replica",
            "readsreplica",
            "slave_read",
            "dbslave_2",
        ],
    )
    def test_a_candidate(
        self, build: Build, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What may be meant as one is named, at WARNING, in the one line."""
        assert build([name]).get() == "master"
        (line,) = [record.getMessage() for record in caplog.records]
        assert "has no 'slave_1'" in line
        assert f"SQLALCHEMY_BINDS[{name!r}]" in line
        assert said(caplog, logging.WARNING) == [line]

    def test_two_candidates(
        self, build: Build, caplog: pytest.LogCaptureFixture
    ) -> None:
        """All of them are named in it."""
        build(["ro", "replica2", "analytics", "analytics_reader"])
        (line,) = said(caplog, logging.WARNING)
        for name in ("ro", "replica2", "analytics_reader"):
            assert f"SQLALCHEMY_BINDS[{name!r}]" in line
        assert "['analytics']" not in line
        assert "they stay ordinary binds" in line
        assert "'replica_1'" in line

    @pytest.mark.parametrize(
        ("name", "url"),
        [
            ("analytics", COPY),
            ("road", COPY),
            ("reading", COPY),
            ("secondary", OTHER),
            ("reader", "mysql+pymysql://shop@h/shop"),
        ],
    )
    def test_none(self, name: str, url: str, caplog: pytest.LogCaptureFixture) -> None:
        """Each developer's machine, and each test, is told at INFO."""
        start({name: url})
        (line,) = said(caplog, logging.INFO)
        assert line.endswith("every statement goes to the primary.")
        assert not said(caplog, logging.WARNING)

    @pytest.mark.parametrize("name", ["follower_1", "reader", "hot_standby", "slav_1"])
    def test_behind_a_pooler(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        """There a copy may be a database of another name."""
        start({name: "postgresql+psycopg://shop@bouncer/shop_copy"})
        (line,) = said(caplog, logging.WARNING)
        assert f"SQLALCHEMY_BINDS[{name!r}]" in line

    def test_lite(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Flask-SQLAlchemy-Lite's settings are called as they are there."""
        lite = pytest.importorskip("flask_sqlalchemy_lite")
        app = Flask("shop")
        file = sqlite_url(make_file(tmp_path, "master"))
        app.config["SQLALCHEMY_ENGINES"] = {"default": file, "standby": file}
        lite.SQLAlchemy(app)
        FlaskReplicated(app)
        (line,) = said(caplog, logging.WARNING)
        assert "SQLALCHEMY_ENGINES['standby']" in line


class TestLists:
    """Several servers under one name, or none."""

    @pytest.mark.parametrize("servers", [[COPY, COPY], (COPY,), [{"url": COPY}]])
    @pytest.mark.parametrize(
        ("name", "right"),
        [
            ("slave", "{'slave_1': ..., 'slave_2': ...}"),
            ("analytics_replica_1", "'analytics_replica_2': ..."),
        ],
    )
    def test_refused(self, servers: Any, name: str, right: str) -> None:
        """Where this extension comes first it says what to write instead."""
        app = Flask("shop")
        app.config["SQLALCHEMY_BINDS"] = {name: servers}
        with pytest.raises(ConfigurationError) as caught:
            FlaskReplicated(app)
        assert caught.value.key == f"SQLALCHEMY_BINDS[{name!r}]"
        assert right in caught.value.remedy

    @pytest.mark.parametrize(
        "bind", ["", " ", None, {}, {"url": ""}, {"uri": COPY, "password": "hunter2"}]
    )
    @pytest.mark.parametrize("name", ["slave_1", "analytics"])
    def test_none(self, bind: Any, name: str) -> None:
        """No server at all is told of, too, as with a variable that is not set."""
        app = Flask("shop")
        app.config["SQLALCHEMY_BINDS"] = {"slave_2": COPY, name: bind}
        with pytest.raises(ConfigurationError) as caught:
            FlaskReplicated(app)
        assert caught.value.key == f"SQLALCHEMY_BINDS[{name!r}]"
        assert "Leave the bind out" in caught.value.remedy
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("bind", "error", "message"),
        [
            ([COPY], ValueError, "dictionary update sequence element"),
            ((COPY, COPY), ValueError, "dictionary update sequence element"),
            ({"uri": COPY}, KeyError, "url"),
            ("", ArgumentError, "Could not parse SQLAlchemy URL"),
        ],
    )
    def test_flask_sqlalchemy_comes_first(
        self, bind: Any, error: type[Exception], message: str
    ) -> None:
        """In the right order Flask-SQLAlchemy fails first, as docs/fleet.md tells."""
        app = Flask("shop")
        app.config.update(
            SQLALCHEMY_DATABASE_URI=PRIMARY, SQLALCHEMY_BINDS={"replica_1": bind}
        )
        with pytest.raises(error, match=message):
            SQLAlchemy(app)


class TestKeys:
    """Keys of ``app.config`` that are nearly of this extension."""

    @pytest.mark.parametrize(
        ("key", "meant"),
        [
            ("REPLICATE_MAX_LAG", "REPLICATED_MAX_LAG"),
            ("REPLICATES_FALLBACK", "REPLICATED_FALLBACK"),
            ("RELPICATED_WEIGHTS", "REPLICATED_WEIGHTS"),
            ("REPLICATED-PIN-SECONDS", "REPLICATED_PIN_SECONDS"),
            ("REPLICATEDPIN_SECONDS", "REPLICATED_PIN_SECONDS"),
            ("replicated_max_lag", "REPLICATED_MAX_LAG"),
            ("Replicated_Role_Check", "REPLICATED_ROLE_CHECK"),
            ("REPLICATE_WEIGTHS", "REPLICATED_WEIGHTS"),
            ("AUTO_READ_SLAVE", "AUTO_READ_ON_SLAVE"),
            ("auto_read_on_slave", "AUTO_READ_ON_SLAVE"),
            ("AUOT_READ_ON_SLAVE", "AUTO_READ_ON_SLAVE"),
            ("UTO_READ_ON_SLAVES", "AUTO_READ_ON_SLAVE"),
            ("ERPLICATED_WEIGHTS", "REPLICATED_WEIGHTS"),
            ("PLICATED_PIN_SECONDS", "REPLICATED_PIN_SECONDS"),
            ("REPLICATE_COOKIE", "REPLICATED_PIN_COOKIE"),
            ("replicate_probe", "REPLICATED_PROBE_INTERVAL"),
        ],
    )
    def test_refused(self, key: str, meant: str) -> None:
        """A slip is an error that says what is meant."""
        with pytest.raises(
            ConfigurationError, match=f"did you mean {meant}[?]"
        ) as caught:
            read_settings({key: 5}, ["GET"], [])
        assert caught.value.key == key

    @pytest.mark.parametrize("key", ["REPLICATE_TO", "REPLICATE_QQ", "REPLICATE_1"])
    def test_any_key_with_nearly_the_prefix(
        self, key: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A key that begins with REPLICATE_ and resembles no setting is told of."""
        read_settings({key: 5}, ["GET"], [])
        (line,) = said(caplog, logging.WARNING)
        assert line.startswith(key)
        assert "they begin with REPLICATED_" in line

    @pytest.mark.parametrize(
        "key",
        [
            "REPLICATION_MAX_LAG",
            "REPLICA_MAX_LAG",
            "REPLICAS_MAX_LAG",
            "FLASK_REPLICATED_MAX_LAG",
        ],
    )
    def test_told(self, key: str, caplog: pytest.LogCaptureFixture) -> None:
        """A key that another program may have is told of, and no error."""
        read_settings({key: 5}, ["GET"], [])
        (line,) = said(caplog, logging.WARNING)
        assert key in line
        assert "REPLICATED_MAX_LAG" in line

    @pytest.mark.parametrize(
        "key",
        [
            "REPLICATION_SLOT",
            "REPLICATE_API_TOKEN",
            "READ_ON_SLAVE",
            "REPLICATION_TIMEOUT",
            "REPLICA_SET",
            "REPLICATION_NODE_WEIGHTS",
            "REDIS_PIN_COOKIE",
            "RATELIMIT_STORAGE_URI",
            "DUPLICATED_WEIGHTS",
            "SHOP_REPLICATED_WEIGHTS",
            "MY_REPLICATED_WEIGHTS",
            "MAX_LAG",
            "AUTO_RELOAD",
            "REPLICATED",
        ],
    )
    def test_of_others(self, key: str, caplog: pytest.LogCaptureFixture) -> None:
        """Keys of others are left alone."""
        read_settings({key: 5}, ["GET"], [])
        assert not caplog.records

    def test_flask_has_none(self, caplog: pytest.LogCaptureFixture) -> None:
        """Nor is one of Flask's or Flask-SQLAlchemy's own taken for one."""
        start({"slave_1": COPY})
        assert not caplog.records
