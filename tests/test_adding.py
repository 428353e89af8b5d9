"""Replicas that are added while the application runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.pool import QueuePool

from flask_replicated import ConfigurationError, using_slave
from tests.fleets import Fleet, fleet_fixture
from tests.support import (
    REPLICAS,
    Build,
    break_file,
    build_fixture,
    core,
    make_file,
    sqlite_url,
)

if TYPE_CHECKING:
    from pathlib import Path

build = build_fixture
fleet = fleet_fixture
PASSWORD = "hunter2"


class Broken(QueuePool):
    """What a custom part of an engine may do."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError(PASSWORD)


class TestAdd:
    """FlaskReplicated.add()."""

    def test_serves_reads(self, fleet: Fleet) -> None:
        """A new replica takes its share at once and stands in db.engines."""
        assert fleet.site.count(6) == dict.fromkeys(REPLICAS, 2)
        fleet.add("slave_4")
        assert fleet.site.count(40) == dict.fromkeys([*REPLICAS, "slave_4"], 10)
        assert core(fleet.engines()["slave_4"]) == "slave_4"

    def test_by_url(self, fleet: Fleet) -> None:
        """A URL will do, as text and as an object."""
        url = sqlite_url(make_file(fleet.site.folder, "slave_4"))
        with fleet.site.app.app_context():
            fleet.extension.add("slave_4", url)
            fleet.extension.add("replica_5", sa.make_url(url))
        assert fleet.site.count(10)["slave_4"] == 4

    def test_is_made_as_binds_are(self, build: Build, tmp_path: Path) -> None:
        """Defaults, options, a relative path and echo are as for a bind."""
        db = SQLAlchemy(engine_options={"pool_size": 3})
        fleet = Fleet(build, db=db, SQLALCHEMY_RECORD_QUERIES=True)
        fleet.site.app.instance_path = str(tmp_path)
        make_file(tmp_path, "slave_4")
        with fleet.site.app.app_context():
            fleet.extension.add(
                "slave_4",
                {"url": "sqlite:///slave_4.db", "max_overflow": 1, "echo": True},
            )
            engine = db.engines["slave_4"]
        assert isinstance(engine.pool, QueuePool)
        assert engine.pool.size() == 3
        assert engine.pool._max_overflow == 1
        assert engine.echo
        assert core(engine) == "slave_4"

    def test_has_the_same_care(self, fleet: Fleet) -> None:
        """The server refuses a write there, and so does the gate."""
        fleet.add("slave_4")
        for name in REPLICAS:
            fleet.remove(name)
        engine = fleet.engines()["slave_4"]
        with engine.connect() as connection, pytest.raises(sa.exc.OperationalError):
            connection.execute(sa.text("INSERT INTO entry (text) VALUES ('x')"))
        with fleet.site.app.app_context(), using_slave():
            routed = fleet.site.db.engine
            with routed.connect() as connection:
                found = connection.execute(sa.text("SELECT name FROM marker"))
                assert found.scalar() == "slave_4"
                with pytest.raises(Exception, match="write on a replica"):
                    connection.exec_driver_sql("DELETE FROM entry")

    def test_has_a_breaker(self, fleet: Fleet) -> None:
        """A new replica that cannot be opened costs no request anything."""
        fleet.add("slave_4")
        break_file(fleet.site.folder, "slave_4")
        fleet.engines()["slave_4"].dispose()
        assert set(fleet.site.count(20)) == set(REPLICAS)
        assert fleet.live() == set(REPLICAS)

    def test_has_the_options_that_were_set_for_all(self, fleet: Fleet) -> None:
        """Execution options that all replicas were given are its own too."""
        with fleet.site.app.app_context():
            fleet.site.db.engine.update_execution_options(mark=1)
        fleet.add("slave_4")
        assert fleet.engines()["slave_4"].get_execution_options()["mark"] == 1

    def test_weight(self, build: Build) -> None:
        """A weight is a share."""
        fleet = Fleet(build, REPLICATED_BALANCER="weighted")
        fleet.add("slave_4", weight=3)
        assert fleet.site.count(60)["slave_4"] == 30

    def test_to_another_bind(self, build: Build) -> None:
        """Another bind's replicas are named after it."""
        names = ["analytics", "analytics_slave_1"]
        fleet = Fleet(build, [*REPLICAS, *names])
        fleet.add("analytics_slave_2", bind_key="analytics")
        with fleet.site.app.app_context():
            pool = fleet.extension.pool("analytics")
            assert {m.name for m in pool.members} == {
                "analytics_slave_1",
                "analytics_slave_2",
            }
            with pytest.raises(ConfigurationError, match="'analytics_slave_1'"):
                fleet.extension.add("slave_9", "sqlite://", bind_key="analytics")

    @pytest.mark.parametrize(
        ("name", "bind", "weight", "key", "remedy"),
        [
            ("slave_1", "sqlite://", 1, "name", "is taken"),
            ("fourth", "sqlite://", 1, "name", "'slave', 'slave_1'"),
            (4, "sqlite://", 1, "name", "'slave', 'slave_1'"),
            ("other_slave_1", "sqlite://", 1, "name", "'slave', 'slave_1'"),
            ("slave_4", "sqlite://", -1, "weight", "whole number"),
            ("slave_4", "sqlite://", 10**16, "weight", "at most"),
            pytest.param(
                "slave_4", "sqlite://", 10**400, "weight", "at most", id="heaviest"
            ),
            ("slave_4", "no url", 1, "SQLALCHEMY_BINDS['slave_4']", "URL"),
            ("slave_4", "nosuch://x", 1, "SQLALCHEMY_BINDS['slave_4']", "URL"),
            ("slave_4", {}, 1, "SQLALCHEMY_BINDS['slave_4']", "'url'"),
            ("slave_4", None, 1, "SQLALCHEMY_BINDS['slave_4']", "'url'"),
            *(
                ("slave_4", bind, 1, "SQLALCHEMY_BINDS['slave_4']", "engine options")
                for bind in (
                    {"url": "sqlite://", "module": PASSWORD},
                    {"url": "sqlite://", "pool": PASSWORD},
                    {"url": "sqlite://", 5: PASSWORD},
                    {"url": "sqlite:///no.db", "poolclass": Broken},
                )
            ),
            (
                "slave_4",
                {"url": f"postgresql+psycopg://u:{PASSWORD}@h/x", "no_such_option": 1},
                1,
                "SQLALCHEMY_BINDS['slave_4']",
                "no_such_option",
            ),
        ],
    )
    def test_errors(
        self,
        fleet: Fleet,
        *,
        name: Any,
        bind: Any,
        weight: Any,
        key: str,
        remedy: str,
    ) -> None:
        """Whatever is wrong is named, with what would be right, and changes nothing."""
        before = fleet.engines()
        with (
            fleet.site.app.app_context(),
            pytest.raises(ConfigurationError) as caught,
        ):
            fleet.extension.add(name, bind, weight=weight)
        assert caught.value.key == key
        assert remedy in caught.value.remedy
        assert PASSWORD not in str(caught.value)
        assert fleet.engines() == before
        assert fleet.site.count(6) == dict.fromkeys(REPLICAS, 2)

    def test_without_replicas(self, build: Build) -> None:
        """A bind that had none at start gets none later, and says so."""
        fleet = Fleet(build, [])
        with pytest.raises(
            ConfigurationError, match="the default bind has no replicas"
        ):
            fleet.add("slave_1")
        with pytest.raises(RuntimeError, match=r"add\(\) needs an application context"):
            fleet.extension.add("slave_4", "sqlite://")
        with pytest.raises(RuntimeError, match=r"remove\(\) needs an application"):
            fleet.extension.remove("slave_4")
