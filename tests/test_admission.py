"""What a new connection must hear from its server, without a server."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from flask_replicated.errors import ReplicaLagsError, WrongRoleError
from flask_replicated.replica.admission import Admission, accept_any_lag
from flask_replicated.replica.fitness import ReplicaHistory
from flask_replicated.replica.replica_status import ReplicaReport
from tests.balancers.support import FakeClock

UNKNOWN = RuntimeError("no such function")
# Timelines, and when it was started.
MORE = (1, 1, 7.0)
IN_STEP = (True, 100, 100, True, 500, *MORE)
BEHIND = (True, 200, 100, True, 500, *MORE)
CAUGHT_UP = (True, 250, 200, True, 500, *MORE)
CUT_OFF = (True, 100, 100, False, 500, *MORE)
PRIMARY = (False, None, None, False, None, *MORE)
NO_SLOTS = (None,)


class Server:
    """A connection, and its cursor, to a server that has its answers ready.

    Attributes:
        asked: What it was asked.
        rolled_back: How often its transaction was given up.
    """

    description = (("Seconds_Behind_Master",),)

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []
        self.rolled_back = 0

    def cursor(self) -> Server:
        """Return itself."""
        return self

    def execute(self, sql: str) -> None:
        """Take the next answer, unless it is only to wait."""
        self.asked.append(" ".join(sql.split()))
        if "pg_sleep" in sql:
            return
        if isinstance(self._answers[0], Exception):
            raise self._answers.pop(0)

    def fetchone(self) -> Any:
        """Return the answer."""
        return self._answers.pop(0)

    def rollback(self) -> None:
        """Count."""
        self.rolled_back += 1

    def close(self) -> None:
        """Do nothing."""


def admission(dialect: str = "postgresql", **options: Any) -> Admission:
    """Return one as it is by default."""
    given = {"role_check": True, "max_lag": 30.0, "watched": True, **options}
    history = given.pop("history", None) or ReplicaHistory(max_lag=given["max_lag"])
    return Admission("slave_1", dialect, history, **given)


class TestPostgreSQL:
    """One question tells both role and lag."""

    def test_one_question(self) -> None:
        """A replica that is in step is asked once."""
        server = Server(IN_STEP)
        admission().ask(server)
        assert len(server.asked) == 1

    def test_no_replica(self) -> None:
        """A primary is refused."""
        with pytest.raises(WrongRoleError, match="slave_1"):
            admission().ask(Server(PRIMARY, NO_SLOTS))

    def test_any_lag(self) -> None:
        """Where any lag will do, the role and the timeline matter still."""
        server = Server(BEHIND)
        admission(max_lag=None).ask(server)
        assert len(server.asked) == 1
        with pytest.raises(WrongRoleError):
            admission(max_lag=None).ask(Server(PRIMARY, NO_SLOTS))

    def test_lag_alone(self) -> None:
        """A server that replicates logically is neither a replica nor behind."""
        admission(role_check=False).ask(Server(PRIMARY, NO_SLOTS))
        admission(role_check=False).ask(Server(UNKNOWN, UNKNOWN))
        with pytest.raises(ReplicaLagsError):
            admission(role_check=False).ask(Server(*[BEHIND] * 4))

    def test_nothing_to_ask(self) -> None:
        """Where any server will do, nothing is asked."""
        server = Server()
        admission(role_check=False, max_lag=None).ask(server)
        admission("sqlite").ask(server)
        assert not server.asked

    def test_does_not_know_its_lag(self) -> None:
        """A server without these functions is asked for less, at last for its role."""
        server = Server(UNKNOWN, IN_STEP[:5])
        admission().ask(server)
        assert server.rolled_back == 1
        server = Server(UNKNOWN, UNKNOWN, (True,))
        admission().ask(server)
        assert server.rolled_back == 2
        with pytest.raises(WrongRoleError):
            admission().ask(Server(UNKNOWN, UNKNOWN, (False,)))

    def test_does_not_know_its_role(self) -> None:
        """What it says to that, the caller is told."""
        with pytest.raises(RuntimeError, match="no such function"):
            admission().ask(Server(UNKNOWN, UNKNOWN, UNKNOWN))

    def test_far_behind(self) -> None:
        """One that replays nothing in a few moments is refused."""
        server = Server(*[BEHIND] * 4)
        with pytest.raises(ReplicaLagsError, match="REPLICATED_MAX_LAG = 30") as caught:
            admission().ask(server)
        assert caught.value.lag == 500
        assert len([sql for sql in server.asked if "pg_sleep" in sql]) == 3

    def test_keeps_no_caller_alive(self) -> None:
        """What is remembered of a refusal does not hold who was refused."""
        one, found = admission(), []
        try:
            one.ask(Server(*[BEHIND] * 4))
        except ReplicaLagsError as error:
            found.append(weakref.ref(error))
        gc.collect()
        assert [error() for error in found] == [None]

    def test_any_lag_will_do(self) -> None:
        """Where none is fresher, one that is far behind is taken, and known as such."""
        history = ReplicaHistory()
        token = accept_any_lag.set(True)
        try:
            admission(history=history).ask(Server(*[BEHIND] * 4))
            with pytest.raises(WrongRoleError):
                admission().ask(Server(PRIMARY, NO_SLOTS))
        finally:
            accept_any_lag.reset(token)
        assert history.lags

    def test_primary_that_was_idle(self) -> None:
        """What has only just come is no lag, old as the last transaction may be."""
        server = Server(BEHIND, BEHIND, CAUGHT_UP)
        admission().ask(server)
        assert len([sql for sql in server.asked if "pg_sleep" in sql]) == 2

    def test_seen_before(self) -> None:
        """What a probe has seen a while ago spares the retries."""
        history, clock = ReplicaHistory(), FakeClock()
        seen = ReplicaReport(False, 0.0, True, 100, 100)
        history.progress.lag(seen, now=clock.now - 10)
        server = Server(BEHIND)
        admission(history=history, clock=clock).ask(server)
        assert len(server.asked) == 1

    def test_receives_nothing(self) -> None:
        """A primary that restarts takes no replica out; one that stays away does."""
        history, clock = ReplicaHistory(), FakeClock()
        asks = admission(history=history, clock=clock).ask
        with pytest.raises(ReplicaLagsError):
            asks(Server(CUT_OFF))
        asks(Server(IN_STEP))
        clock.now += 29
        asks(Server(CUT_OFF))
        clock.now += 2
        with pytest.raises(ReplicaLagsError):
            asks(Server(CUT_OFF))

    def test_promoted_meanwhile(self) -> None:
        """It is found out while it is waited for."""
        with pytest.raises(WrongRoleError):
            admission().ask(Server(BEHIND, PRIMARY, NO_SLOTS))


class TestMariaDB:
    """``SHOW REPLICA STATUS``, where the account may."""

    def test_lag(self) -> None:
        """It tells how far it is behind, and unknown is not zero."""
        admission("mariadb").ask(Server((0,)))
        for behind in (31, None):
            with pytest.raises(ReplicaLagsError):
                admission("mariadb").ask(Server((behind,)))

    def test_promoted(self) -> None:
        """One that has replicated, and has no source any more, is refused."""
        asks = admission("mariadb").ask
        asks(Server(None, None, None))
        asks(Server((0,)))
        with pytest.raises(WrongRoleError):
            asks(Server(None, None, None))

    def test_does_not_tell(self) -> None:
        """An account that may not ask is let in."""
        admission("mysql").ask(Server(UNKNOWN, UNKNOWN, UNKNOWN))


class TestAgain:
    """Pooled connections, where nothing probes in the background."""

    def test_from_time_to_time(self) -> None:
        """One of them makes place, and no more, until it is time again."""
        clock = FakeClock()
        one = admission(watched=False, clock=clock)
        assert not one.is_due()
        clock.now += 5
        assert [one.is_due() for _ in range(3)] == [True, False, False]
        clock.now += 4
        one.ask(Server(IN_STEP))
        clock.now += 4
        assert not one.is_due()

    @pytest.mark.parametrize(
        ("dialect", "options"),
        [
            ("postgresql", {"watched": True}),
            ("postgresql", {"role_check": False, "max_lag": None}),
            ("sqlite", {}),
        ],
    )
    def test_never(self, dialect: str, options: dict[str, Any]) -> None:
        """Where there is a probe, or nothing to ask, none does."""
        clock = FakeClock()
        one = admission(dialect, **{"watched": False, **options}, clock=clock)
        clock.now += 1000
        assert not one.is_due()
