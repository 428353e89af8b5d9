"""What the kit says of reads, and lets the library believe of replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from sqlalchemy.exc import InvalidRequestError

from flask_replicated import (
    AllReplicasOutError,
    ConfigurationError,
    guarantee,
    using_master,
    using_slave,
)
from flask_replicated.testing import (
    assert_served,
    mirror,
    recorded_decisions,
    replica_down,
    replica_lags,
)
from tests.kit.shop import isolated, make_shop
from tests.support import build_fixture as build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support import Build

__all__ = ["build"]

PAIR = ("slave_1", "slave_2")


class TestServed:
    """``assert_served()`` and ``recorded_decisions()``."""

    def test_decisions(self, build: Build) -> None:
        """Each read is there, with its server and the reason, in their order."""
        site = build(PAIR)
        with site.app.app_context(), recorded_decisions() as found:
            site.who()
            with using_slave():
                site.db.session.rollback()
                site.who()
            with using_master():
                site.db.session.rollback()
                site.who()
        site.get("/")
        with recorded_decisions(site.app) as later:
            site.get("/")
            site.client().post("/write")
        shown = [(one.role, one.replica, one.reason, one.endpoint) for one in found]
        assert shown == [
            ("primary", None, "outside", None),
            ("replica", shown[1][1], "block", None),
            ("primary", None, "block", None),
        ]
        assert shown[1][1] in PAIR
        assert [(one.role, one.reason, one.endpoint) for one in later] == [
            ("replica", "method", "who"),
            ("primary", "latched", "write"),
        ]
        assert {"SELECT marker.name" in one.statement for one in [*found, *later]} == {
            True
        }

    def test_a_failure_lists_the_reads(self, build: Build) -> None:
        """It says how many reads went where, and each one with its reason."""
        site = build(("slave_1",))
        with (
            pytest.raises(AssertionError) as caught,
            assert_served(primary=1, replica=2, app=site.app),
        ):
            site.get("/")
        assert str(caught.value).replace("\n", " ") == (
            "expected 1 reads by the primary and 2 by replicas, and there were 0 and 1:"
            "   1. in who: slave_1 (method: GET only reads): "
            "SELECT marker.name FROM marker"
        )

    def test_as_the_counts_say(self, build: Build) -> None:
        """It counts what a snapshot of the pool counts, in nested blocks as well."""
        site = build(PAIR)
        with site.app.app_context():
            pool = site.app.extensions["replicated"].pool()
        with (
            recorded_decisions(site.app) as outer,
            assert_served(primary=1, replica=3, app=site.app) as inner,
        ):
            site.count(3)
            site.client().post("/write")
        site.get("/")
        shown = pool.snapshot()
        assert len(inner) == len(outer) == 4
        assert sum(one.reads for one in shown.members) == 4
        assert sum(shown.primary_reads.values()) == 1

    def test_an_error_inside(self, build: Build) -> None:
        """An error of the block itself is what is raised."""
        site = build(PAIR)
        with pytest.raises(ZeroDivisionError), assert_served(replica=1, app=site.app):
            raise ZeroDivisionError


class TestBeliefs:
    """``replica_down()`` and ``replica_lags()``, on servers of their own."""

    def test_down(self, build: Build) -> None:
        """A replica gets no read while it is down, and its share afterwards."""
        site = build(PAIR)
        with replica_down("slave_1", site.app):
            with replica_down("slave_1", site.app):
                assert site.count(4) == {"slave_2": 4}
            assert site.count(4) == {"slave_2": 4}
            with replica_down("slave_2", site.app):
                assert site.count(2) == {"master": 2}
        assert site.count(4) == {"slave_1": 2, "slave_2": 2}

    def test_all_down_is_an_error(self, build: Build) -> None:
        """Where the primary must not stand in, the error names the block as cause."""
        site = build(("slave_1",), REPLICATED_FALLBACK="error", TESTING=True)
        with (
            replica_down("slave_1", app=site.app),
            pytest.raises(AllReplicasOutError, match=r"replica_down\('slave_1'\)"),
        ):
            site.client().get("/")

    @pytest.mark.parametrize(
        ("seconds", "most", "served"),
        [(40, 30, "slave_2"), (40, None, "slave_1"), (20, 30, "slave_1")],
    )
    def test_lag(
        self, build: Build, seconds: float, most: float | None, served: str
    ) -> None:
        """A replica serves up to ``REPLICATED_MAX_LAG``."""
        weights = {"slave_1": 1, "slave_2": 0 if served == "slave_1" else 1}
        site = build(
            PAIR,
            REPLICATED_MAX_LAG=most,
            REPLICATED_WEIGHTS=weights,
            REPLICATED_BALANCER="weighted",
        )
        with replica_lags("slave_1", seconds, app=site.app):
            assert site.count(3) == {served: 3}

    def test_staleness(self, build: Build) -> None:
        """A read that must show something newer goes elsewhere."""
        site = build(("slave_1",))
        with (
            site.app.test_request_context("/"),
            replica_lags("slave_1", 5),
            guarantee(max_staleness=4),
        ):
            assert site.who() == "master"
        with (
            site.app.test_request_context("/"),
            replica_lags("slave_1", 5),
            guarantee(max_staleness=6),
        ):
            assert site.who() == "slave_1"

    def test_the_least_lagged(self, build: Build) -> None:
        """``REPLICATED_LAG_FALLBACK`` is followed."""
        site = build(PAIR, REPLICATED_LAG_FALLBACK="least_lagged")
        with (
            replica_lags("slave_1", 50, app=site.app),
            replica_lags("slave_2", 40, app=site.app),
        ):
            assert site.count(3) == {"slave_2": 3}
        assert site.count(2) == {"slave_1": 1, "slave_2": 1}

    def test_any_order(self, build: Build) -> None:
        """Blocks of several threads may end in any order; afterwards all is as was."""
        site = build(("slave_1",))
        routed = site.app.extensions["replicated"].state(site.app).routes[None]
        before = routed.known, routed.monitor, routed.real.pool, site.app.wsgi_app
        first = mirror(site.app), replica_lags("slave_1", 5, site.app)
        second = mirror(site.app), replica_lags("slave_1", 40, site.app)
        for block in (*first, *second):
            block.__enter__()
        assert site.count(1) == {"master": 1}  # it lags too far, says the latest
        for block in first:
            block.__exit__(None, None, None)
        assert site.count(1) == {"master": 1}
        second[1].__exit__(None, None, None)
        with recorded_decisions(site.app) as found:
            assert site.count(1) == {"master": 1}  # which all show under the mirror
        assert [one.replica for one in found] == ["slave_1"]
        second[0].__exit__(None, None, None)
        assert site.count(1) == {"slave_1": 1}
        after = routed.known, routed.monitor, routed.real.pool, site.app.wsgi_app
        assert after == before


class TestMistakes:
    """What cannot be right is said in a sentence."""

    def test_other_drivers(self, build: Build) -> None:
        """Servers that share a connection have one driver, or nothing is changed."""
        site = build(("slave_1",))
        with site.app.app_context():
            replica: Any = site.db.engines["slave_1"]
        replica.dialect.driver = "pysqlcipher"
        with (
            pytest.raises(ConfigurationError, match="name one driver for both"),
            mirror(site.app),
        ):
            pass
        del replica.dialect.driver
        assert site.count(1) == {"slave_1": 1}

    def test_a_lost_connection(self) -> None:
        """A test's connection that was lost is named as such."""
        shop = make_shop("sqlite://")
        with mirror(shop.app), isolated(shop):
            with shop.app.app_context():
                engines: Any = shop.db.engines
            engines[None].invalidate()
            with pytest.raises(InvalidRequestError, match="in the engine's place"):
                shop.client().post("/Ada")
            engines[None].rollback()
        shop.close()

    def test_no_application(self) -> None:
        """Outside of an application context, one must be given."""
        for block in (mirror, assert_served, recorded_decisions):
            with pytest.raises(RuntimeError, match=r"give it app=app"), block():
                pass

    def test_no_extension(self) -> None:
        """The application must have the extension."""
        with (
            pytest.raises(ConfigurationError, match=r"FlaskReplicated\(app\)"),
            mirror(Flask("plain")),
        ):
            pass

    @pytest.mark.parametrize(
        "block", [assert_served, recorded_decisions, lambda app: replica_down("x", app)]
    )
    def test_no_replicas(self, block: Callable[..., object]) -> None:
        """Without replicas nothing is counted; the error says what gives some."""
        shop = make_shop("sqlite://")
        with (
            pytest.raises(ConfigurationError, match=r"with mirror\(app\):"),
            block(app=shop.app),  # type: ignore[attr-defined]  # each is a block
        ):
            pass
        shop.close()

    def test_unknown_names(self, build: Build) -> None:
        """An unknown replica's error lists the known ones."""
        site = build(PAIR)
        for block in (
            replica_down("slave_3", site.app),
            replica_lags("slave_3", 1, site.app),
        ):
            with pytest.raises(ConfigurationError, match="'slave_1', 'slave_2'"), block:
                pass

    @pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "40", True])
    def test_lags_that_are_none(self, build: Build, seconds: float) -> None:
        """A lag is a number of seconds."""
        site = build(PAIR)
        with (
            pytest.raises(ConfigurationError, match="number of seconds"),
            replica_lags("slave_1", seconds, site.app),
        ):
            pass

    @pytest.mark.parametrize("names", ["slave_1", [], ["shop"], ["audit_slave"]])
    def test_names_of_mirrors(self, names: list[str]) -> None:
        """What a mirror adds is called as replicas are."""
        shop = make_shop("sqlite://")
        with (
            pytest.raises(ConfigurationError, match="slave_1"),
            mirror(shop.app, names),
        ):
            pass
        assert shop.names() == []
        shop.close()


class TestMirrors:
    """Several applications and binds, and other drivers."""

    def test_two_applications(self, tmp_path: Path) -> None:
        """Each is mirrored by itself, also at the same time."""
        shops = [make_shop(f"sqlite:///{tmp_path}/{name}.db") for name in "ab"]
        one, other = shops
        with mirror(one.app):
            one.client().post("/Ada")
            with mirror(other.app), assert_served(replica=1, app=other.app):
                assert (one.names(), other.names()) == (["Ada"], [])
            with pytest.raises(ConfigurationError), assert_served(app=other.app):
                pass
            with assert_served(replica=1, app=one.app):
                one.names()
        for shop in shops:
            shop.close()

    def test_several_binds(self, tmp_path: Path) -> None:
        """Each bind's replicas show its own primary; a bind without any stays alone."""
        files = [f"sqlite:///{tmp_path}/{name}.db" for name in ("a", "b", "none")]
        shop = make_shop(
            files[0], {"audit": files[1], "slave": files[2], "audit_slave": files[2]}
        )
        with shop.app.app_context():
            shop.db.session.add_all([shop.guest(name="Ada"), shop.logged(text="hi")])
            shop.db.session.commit()
        with mirror(shop.app), recorded_decisions(shop.app) as found:
            assert shop.client().get("/logged").json == ["Ada", "hi"]
        assert [(one.bind, one.replica) for one in found] == [
            (None, "slave"),
            ("audit", "audit_slave"),
        ]
        shop.close()
