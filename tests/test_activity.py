"""Whether a server works on a statement that waits for an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flask_replicated.replica.activity import Backend, works_on
from flask_replicated.replica.in_flight import PendingAnswer
from flask_replicated.replica.poolers import POOLED

PID, PORT, SENT = 7, 40_000, 100.0


def wait(*, pooled: bool = False, driver: str = "psycopg") -> PendingAnswer:
    """Return a wait over a connection that was told of process 7."""
    info = SimpleNamespace(backend_pid=PID)
    connection: Any = SimpleNamespace(info=info, thread_id=lambda: PID)
    if driver == "psycopg2":
        connection.get_backend_pid = lambda: PID
    record: Any = SimpleNamespace(info={POOLED: True} if pooled else {})
    return PendingAnswer(record, connection, 1000, 6.0, 6.0, PORT)


def does(
    pid: int = PID,
    port: int | None = 1,
    *,
    works: bool = True,
    began: float | None = SENT,
) -> Backend:
    """Return what a server does for a client that it sees through a proxy."""
    return Backend(pid, port, works, began, 0.5)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pymysql"])
@pytest.mark.parametrize("works", [True, False])
def test_seen_itself(driver: str, works: bool) -> None:
    """Where the server sees the client, it knows, whatever others do."""
    backends = [does(8), does(port=PORT, works=works, began=3.0), does(9)]
    assert works_on(wait(driver=driver), SENT, driver, backends) is works


@pytest.mark.parametrize(
    ("backend", "known"),
    [
        (does(), True),
        (does(began=SENT + 3), True),  # the proxy is slow
        (does(began=SENT - 3), None),  # another server's process of this number
        (does(works=False), None),
        (does(began=None), True),  # the server does not tell
        (does(8), None),  # another client's statement, begun in the same moment
    ],
)
def test_behind_a_proxy(backend: Backend, known: bool | None) -> None:
    """Behind a proxy only the process is the same."""
    assert works_on(wait(), SENT, "psycopg", [backend]) is known


@pytest.mark.parametrize(
    ("backend", "known"),
    [
        (does(8), True),
        (does(8, began=SENT + 0.4), True),
        (does(8, began=SENT + 2), None),
        (does(8, began=SENT - 2), None),
        (does(8, works=False), None),
    ],
)
@pytest.mark.parametrize("driver", ["psycopg", "pymysql"])
def test_behind_a_pooler(backend: Backend, known: bool | None, driver: str) -> None:
    """Behind a pooler only the time of a statement can tell."""
    found = works_on(wait(pooled=True, driver=driver), SENT, driver, [backend])
    assert found is known


def test_no_one() -> None:
    """A server that does nothing at all may be another one."""
    assert works_on(wait(), SENT, "psycopg", []) is None
