"""Settings and binds: defaults, and errors that say what would be right."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_replicated import ConfigurationError, FlaskReplicated
from tests.support import REPLICAS, Build, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from flask_replicated.settings.config import Settings

build = build_fixture

PASSWORD = "hunter2"


def settings_of(build: Build, **config: Any) -> Settings:
    """Return the settings of an application with three replicas."""
    extension = FlaskReplicated()
    state = extension.state(build(extension=extension, **config).app)
    assert state is not None
    return state.settings


class TestValues:
    """What each setting takes."""

    def test_defaults(self, build: Build) -> None:
        """Without a setting, each has the documented default."""
        found = settings_of(build)
        assert found.readonly_methods == {"GET", "HEAD"}
        assert found.read_on_replica
        assert found.pin_seconds == 5
        assert found.pin_cookie == "replicated_pin"
        assert found.fall_back
        assert found.connect_timeout == 2
        assert found.max_connecting == 4
        assert found.max_pools is None
        assert found.weights == {}

    @pytest.mark.parametrize(
        ("key", "value", "attribute", "expected"),
        [
            ("AUTO_READ_ON_SLAVE", False, "read_on_replica", False),
            ("REPLICATED_BREAKER_MAX_RESET", 90, "breaker_max_reset", 90),
            ("REPLICATED_BREAKER_RESET", 0.5, "breaker_reset", 0.5),
            ("REPLICATED_BREAKER_THRESHOLD", 4, "breaker_threshold", 4),
            ("REPLICATED_CONNECT_TIMEOUT", 0.5, "connect_timeout", 0.5),
            ("REPLICATED_EXPLAIN", None, "explain", None),
            ("REPLICATED_EXPLAIN", True, "explain", True),
            ("REPLICATED_CONTROL", Path("/run/shop"), "control", "/run/shop"),
            ("REPLICATED_FALLBACK", "error", "fall_back", False),
            ("REPLICATED_FALLBACK_SHARE", 0, "fallback_share", 0.0),
            ("REPLICATED_FALLBACK_SHARE", 0.25, "fallback_share", 0.25),
            ("REPLICATED_LAG_FALLBACK", "least_lagged", "lag_fallback", "least_lagged"),
            ("REPLICATED_LAG_FALLBACK", "error", "lag_fallback", "error"),
            ("REPLICATED_LAG_WEIGHTS", 2, "lag_weights", 2),
            ("REPLICATED_MAX_CONNECTING", 1, "max_connecting", 1),
            ("REPLICATED_MAX_CONNECTING", None, "max_connecting", None),
            ("REPLICATED_MAX_POOLS", 2, "max_pools", 2),
            ("REPLICATED_MAX_POOLS", None, "max_pools", None),
            ("REPLICATED_MODE", "observe", "mode", "observe"),
            ("REPLICATED_PIN_COOKIE", "wrote", "pin_cookie", "wrote"),
            ("REPLICATED_MAX_LAG", None, "max_lag", None),
            ("REPLICATED_MAX_LAG", 0, "max_lag", 0),
            ("REPLICATED_PIN_SECONDS", 0, "pin_seconds", 0),
            ("REPLICATED_PROBE_INTERVAL", 0, "probe_interval", 0),
            ("REPLICATED_READ_TIMEOUT", 1.5, "read_timeout", 1.5),
            ("REPLICATED_ROLE_CHECK", False, "role_check", False),
            ("REPLICATED_SLOW_START", 5, "slow_start", 5),
            ("REPLICATED_READONLY_METHODS", ["get"], "readonly_methods", {"GET"}),
            ("REPLICATED_READONLY_METHODS", [], "readonly_methods", set()),
            ("REPLICATED_WEIGHTS", {"slave_2": 0}, "weights", {"slave_2": 0}),
            ("REPLICATED_ZONE", None, "zone", None),
            ("REPLICATED_ZONES", {"slave_2": "eu"}, "zones", {"slave_2": "eu"}),
        ],
    )
    def test_given(
        self, build: Build, key: str, value: object, attribute: str, expected: object
    ) -> None:
        """A setting that is given is used."""
        assert getattr(settings_of(build, **{key: value}), attribute) == expected

    def test_pickle(self, build: Build) -> None:
        """A configuration error survives pickling, and is a ValueError too."""
        with pytest.raises(ValueError, match="REPLICATED_FALLBACK") as caught:
            build(REPLICATED_FALLBACK="no")
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value)
        assert (again.key, again.value) == ("REPLICATED_FALLBACK", "no")

    def test_all_weights_zero(
        self, build: Build, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Replicas that all weigh 0 take no traffic: the primary reads, as is told."""
        site = build(REPLICATED_WEIGHTS=dict.fromkeys(REPLICAS, 0))
        assert "REPLICATED_WEIGHTS gives 0 to every replica" in caplog.text
        assert "SQLALCHEMY_BINDS['slave_3']" in caplog.text
        assert site.get() == "master"

    def test_one_weight_zero(
        self, build: Build, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One of them is left out on purpose."""
        build(REPLICATED_WEIGHTS={"slave_1": 0})
        assert not caplog.records


class TestReplicaNames:
    """Which binds are replicas."""

    @pytest.mark.parametrize(
        "names",
        [
            ["slave"],
            ["replica"],
            ["slave_1"],
            ["slave_1", "slave_2"],
            ["slave_7", "slave_12"],
            ["replica_1", "replica_2"],
            ["slave", "slave_1", "replica_1"],
            ["master_slave_1", "primary_replica_1"],
        ],
    )
    def test_recognised(self, build: Build, names: list[str]) -> None:
        """The documented names are replicas of the default bind."""
        assert build(names).count(2 * len(names)) == dict.fromkeys(names, 2)

    @pytest.mark.parametrize(
        "name", ["slave_", "slave_x", "slaves_1", "Slave_1", "analytics", "slave_1_old"]
    )
    def test_others(self, build: Build, name: str) -> None:
        """Any other bind is an ordinary bind, and reads stay where they were."""
        site = build([name])
        assert site.get() == "master"
        assert site.app.config["SQLALCHEMY_BINDS"].keys() == {name}

    def test_orphan(self, build: Build, caplog: pytest.LogCaptureFixture) -> None:
        """A replica of no bind stays an ordinary bind, and is logged."""
        assert build(["analytics_slave_1"]).get() == "master"
        assert "SQLALCHEMY_BINDS['analytics_slave_1']" in caplog.text

    def test_engine_options(self, build: Build, tmp_path: Path) -> None:
        """A bind may be Flask-SQLAlchemy's dict of engine options."""
        options = {"url": sqlite_url(make_file(tmp_path, "slave_1")), "pool_size": 3}
        site = build([], binds={"slave_1": options})
        assert site.get() == "slave_1"
        with site.app.app_context():
            assert site.db.engines["slave_1"].pool.size() == 3  # type: ignore[attr-defined]  # a QueuePool

    def test_none(self, build: Build, caplog: pytest.LogCaptureFixture) -> None:
        """Without a replica everything goes to the primary: no fault, and told once."""
        with caplog.at_level(logging.INFO, "flask_replicated"):
            site = build([])
            site.count(3)
        assert site.seen == ["master"] * 3
        (said,) = caplog.records
        assert said.levelno == logging.INFO
        assert "slave_1" in said.getMessage()

    def test_own_pool(self, build: Build) -> None:
        """A bind with replicas of its own has a pool of its own."""
        names = ["slave_1", "analytics", "analytics_slave_1", "analytics_replica_2"]
        site = build(names)
        model = type(
            "Figure",
            (site.db.Model,),
            {
                "__bind_key__": "analytics",
                "__tablename__": "marker",
                "name": site.db.Column(site.db.String, primary_key=True),
            },
        )

        def figure() -> str:
            return f"{site.db.session.query(model).one().name} {site.who()}"

        site.app.add_url_rule("/figure", "figure", figure, methods=["GET", "POST"])
        assert site.count(6, "/figure") == {
            "analytics_slave_1 slave_1": 3,
            "analytics_replica_2 slave_1": 3,
        }
        assert site.client().post("/figure").text == "analytics master"

    def test_weights_of_two_pools(self, build: Build) -> None:
        """Weights may name replicas of any pool."""
        site = build(
            ["slave_1", "slave_2", "analytics", "analytics_slave_1"],
            REPLICATED_WEIGHTS={"slave_2": 2, "analytics_slave_1": 4},
        )
        assert site.count(6) == {"slave_1": 2, "slave_2": 4}


class TestPrimary:
    """``SQLALCHEMY_BINDS['master']``, beside the URI or instead of it."""

    @pytest.mark.parametrize("name", ["master", "primary"])
    def test_instead_of_the_uri(self, build: Build, tmp_path: Path, name: str) -> None:
        """A master bind stands in for a missing SQLALCHEMY_DATABASE_URI."""
        site = build(
            binds={name: sqlite_url(make_file(tmp_path, "master"))},
            SQLALCHEMY_DATABASE_URI=None,
        )
        assert site.client().post("/write").text == "master"
        assert site.get() in REPLICAS

    def test_beside_the_uri(self, build: Build, tmp_path: Path) -> None:
        """A master bind that repeats the URI is the same engine."""
        site = build(binds={"master": sqlite_url(make_file(tmp_path, "master"))})
        assert site.client().post("/write").text == "master"
        assert site.count(3) == dict.fromkeys(REPLICAS, 1)

    def test_master_only(self, build: Build, tmp_path: Path) -> None:
        """A master bind without replicas is the default bind."""
        uri = sqlite_url(make_file(tmp_path, "master"))
        site = build([], binds={"master": uri}, SQLALCHEMY_DATABASE_URI=None)
        assert site.get("/write") == "master"

    def test_model_on_the_master_bind(self, build: Build, tmp_path: Path) -> None:
        """A model that names the master bind is routed like any other."""
        site = build(binds={"master": sqlite_url(make_file(tmp_path, "master"))})
        model = type(
            "Row",
            (site.db.Model,),
            {
                "__bind_key__": "master",
                "__tablename__": "entry",
                "id": site.db.Column(site.db.Integer, primary_key=True),
                "text": site.db.Column(site.db.String),
            },
        )

        def add() -> str:
            site.db.session.add(model(text="bound"))
            site.db.session.commit()
            return "done"

        site.app.add_url_rule("/add", "add", add, methods=["POST"])
        site.client().post("/add")
        assert site.entries() == ["bound"]


def masked(app: Flask) -> str:
    """Return the message of the error that an application's binds are."""
    SQLAlchemy(app)
    with pytest.raises(ConfigurationError) as caught:
        FlaskReplicated(app)
    for text in (str(caught.value), repr(caught.value), str(caught.value.args)):
        assert PASSWORD not in text
    return str(caught.value)


class TestContradictions:
    """Binds that cannot be meant."""

    def test_other_master(self) -> None:
        """A master bind that is another database than the URI is an error."""
        app = Flask("site")
        app.config.update(
            SQLALCHEMY_DATABASE_URI=f"postgresql://me:{PASSWORD}@one/shop",
            SQLALCHEMY_BINDS={
                "master": f"postgresql://me:{PASSWORD}@two/shop",
                "slave_1": f"postgresql://me:{PASSWORD}@three/shop",
            },
        )
        message = masked(app)
        assert "SQLALCHEMY_BINDS['master']" in message
        assert "@two/shop" in message
        assert "SQLALCHEMY_DATABASE_URI" in message
        assert "@one/shop" in message

    def test_master_and_primary(self) -> None:
        """Two names for the primary are one too many."""
        app = Flask("site")
        app.config.update(
            SQLALCHEMY_DATABASE_URI=f"postgresql://me:{PASSWORD}@one/shop",
            SQLALCHEMY_BINDS={
                "master": f"postgresql://me:{PASSWORD}@one/shop",
                "primary": f"postgresql://me:{PASSWORD}@one/shop",
            },
        )
        message = masked(app)
        assert "'master'" in message
        assert "'primary'" in message

    def test_replicas_without_primary(self) -> None:
        """Replicas of nothing are an error that names both ways to a primary."""
        app = Flask("site")
        app.config["SQLALCHEMY_BINDS"] = {
            "slave_1": f"postgresql://me:{PASSWORD}@one/shop"
        }
        message = masked(app)
        assert "slave_1" in message
        assert "SQLALCHEMY_DATABASE_URI" in message
        assert "SQLALCHEMY_BINDS['master']" in message

    @pytest.mark.parametrize(
        "other",
        [
            "postgresql+psycopg2://you:other@one/shop",
            "postgresql://one/shop?application_name=site",
        ],
    )
    def test_same_database(self, other: str) -> None:
        """Driver, account and options may differ: it is the same database."""
        app = Flask("site")
        app.config.update(
            SQLALCHEMY_DATABASE_URI="postgresql+psycopg://me:pw@one/shop",
            SQLALCHEMY_BINDS={"master": other},
        )
        SQLAlchemy(app)
        FlaskReplicated(app)

    def test_failed_registration_can_be_repeated(self, tmp_path: Path) -> None:
        """After an error the corrected application can be registered."""
        app = Flask("site")
        file = sqlite_url(tmp_path / "shop.db")
        app.config.update(
            SQLALCHEMY_DATABASE_URI=file,
            SQLALCHEMY_BINDS={"slave_1": file},
            REPLICATED_PIN_SECONDS=-1,
        )
        SQLAlchemy(app)
        extension = FlaskReplicated()
        with pytest.raises(ConfigurationError):
            extension.init_app(app)
        app.config["REPLICATED_PIN_SECONDS"] = 1
        extension.init_app(app)
        assert extension.state(app) is not None


def test_nothing_is_logged_when_all_is_well(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """A sound configuration is silent."""
    with caplog.at_level(logging.DEBUG, "flask_replicated"):
        build().count(6)
    # At DEBUG flask_replicated.routing has a line for each read.
    assert not [one for one in caplog.records if one.name == "flask_replicated"]
