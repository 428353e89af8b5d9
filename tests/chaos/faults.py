"""What may happen to a replica: one function for each fault.

A fault is a context manager: it strikes when it is entered and is over when it is
left. How long it stays is decided by whoever enters it.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from examples.cluster import wait_until
from tests.damage import damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from examples.cluster import Cluster, Standby

    from .load import Load
    from .proxy import Proxy

__all__ = ["FAULTS", "PROXIED", "Fault", "Scene"]

PROXIED: Final = 0
"""The standby that stands behind the proxy."""

_FILLER: Final = "chaos filler"
_HOLD: Final = 0.03


@dataclass(frozen=True)
class Scene:
    """What a fault may touch.

    Attributes:
        cluster: The servers.
        proxy: In front of the standby `PROXIED`.
        load: What goes on meanwhile.
    """

    cluster: Cluster
    proxy: Proxy
    load: Load


@dataclass(frozen=True)
class Fault:
    """Something that may happen.

    Attributes:
        strike: Makes it happen to a standby.
        hangs: Whether a server takes connections and says nothing.
        leaves: Whether reads must stop going to that standby.
        slows: Whether answers take longer, as the network would have it.
        everyone: Whether it happens to all standbys, whichever was named.
        proxied: Whether it happens to the standby behind the proxy only.
        brief: Whether it lasts for half a second, however long others do.
        last: Whether it comes after all others.
    """

    strike: Callable[[Scene, Standby], AbstractContextManager[object]]
    hangs: bool = False
    leaves: bool = False
    slows: bool = False
    everyone: bool = False
    proxied: bool = False
    brief: bool = False
    last: bool = False


@contextlib.contextmanager
def _kill(_scene: Scene, standby: Standby) -> Iterator[None]:
    standby.kill()
    yield
    standby.start()


@contextlib.contextmanager
def _restart(_scene: Scene, standby: Standby) -> Iterator[None]:
    standby.restart("fast")
    yield


@contextlib.contextmanager
def _freeze(_scene: Scene, standby: Standby) -> Iterator[None]:
    standby.freeze()
    yield
    standby.thaw()


@contextlib.contextmanager
def _terminate(_scene: Scene, standby: Standby) -> Iterator[None]:
    standby.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where backend_type = 'client backend' and pid <> pg_backend_pid()"
    )
    yield


@contextlib.contextmanager
def _refuse(_scene: Scene, standby: Standby) -> Iterator[None]:
    standby.stop("fast")
    yield
    standby.start()


@contextlib.contextmanager
def _black_hole(scene: Scene, _standby: Standby) -> Iterator[None]:
    scene.proxy.silence()
    try:
        yield
    finally:
        scene.proxy.speak()


@contextlib.contextmanager
def _delay(scene: Scene, _standby: Standby) -> Iterator[None]:
    scene.proxy.delay = 0.05
    try:
        yield
    finally:
        scene.proxy.delay = 0.0


@contextlib.contextmanager
def _reset(scene: Scene, _standby: Standby) -> Iterator[None]:
    scene.proxy.reset()
    yield


@contextlib.contextmanager
def _all_down(scene: Scene, _standby: Standby) -> Iterator[None]:
    for standby in scene.cluster.standbys:
        standby.kill()
    yield
    for standby in scene.cluster.standbys:
        standby.start()


def _conflict(scene: Scene, standby: Standby) -> AbstractContextManager[None]:
    """Let replay need row versions that reads may still see."""
    primary = scene.cluster.primary
    primary.execute("create table if not exists churn (n int)")

    def clean() -> None:
        primary.execute("insert into churn select generate_series(1, 20)")
        primary.execute("delete from churn")
        primary.execute("vacuum churn")

    return _impatient(scene, standby, clean)


def _lock(scene: Scene, standby: Standby) -> AbstractContextManager[None]:
    """Let replay need a lock that reads are in the way of, also between two of them."""

    def lock() -> None:
        sql = "begin; lock table entry in access exclusive mode; commit"
        scene.cluster.primary.execute(sql)

    return _impatient(scene, standby, lock)


@contextlib.contextmanager
def _impatient(
    scene: Scene, standby: Standby, disturb: Callable[[], None]
) -> Iterator[None]:
    """Let replay end what is in its way at once, and put something there."""

    def churn() -> None:
        while not over.wait(0.05):
            disturb()

    over = threading.Event()
    worker = threading.Thread(target=churn, name="churn")
    standby.execute("alter system set max_standby_streaming_delay = 0")
    standby.execute("select pg_reload_conf()")
    scene.load.hold = _HOLD
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()
        scene.load.hold = 0.0
        standby.execute("alter system reset max_standby_streaming_delay")
        standby.execute("select pg_reload_conf()")


@contextlib.contextmanager
def _crowd(_scene: Scene, standby: Standby) -> Iterator[None]:
    """Take every connection that the standby can give, the application's too."""
    with contextlib.ExitStack() as stack:

        def fill() -> int:
            taken = 0
            with contextlib.suppress(OSError, _driver().OperationalError):
                while True:
                    stack.enter_context(_connect(standby))
                    taken += 1
            return taken

        first = stack.enter_context(_connect(standby))
        fill()
        # The application is back in some of them before all can be taken.
        for _ in range(5):
            first.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where "
                "backend_type = 'client backend' and application_name <> %s",
                (_FILLER,),
            )
            fill()
        yield


def _driver() -> Any:
    import psycopg

    return psycopg


def _connect(standby: Standby) -> Any:
    where = f"host=127.0.0.1 port={standby.port} user=postgres dbname=postgres"
    how = f"sslmode=disable connect_timeout=5 application_name='{_FILLER}'"
    return _driver().connect(f"{where} {how}", autocommit=True)


def _damage(_scene: Scene, standby: Standby) -> AbstractContextManager[None]:
    """Let some reads fail over connections that live, and a look find nothing."""
    return damaged(standby)


@contextlib.contextmanager
def _promote(scene: Scene, standby: Standby) -> Iterator[None]:
    standby.promote()
    yield
    standby.rebuild()
    wait_until(lambda: not standby.is_promoted, f"{standby.name} to be a standby")
    scene.cluster.wait_replicated()


FAULTS: Final[Mapping[str, Fault]] = {
    "kill": Fault(_kill, brief=True),
    "restart": Fault(_restart, brief=True),
    "terminate": Fault(_terminate, brief=True),
    "frozen": Fault(_freeze, hangs=True),
    "refused": Fault(_refuse, leaves=True),
    "black-hole": Fault(_black_hole, hangs=True, leaves=True, proxied=True),
    "slow": Fault(_delay, slows=True, proxied=True),
    "reset": Fault(_reset, brief=True, proxied=True),
    "all-down": Fault(_all_down, leaves=True, everyone=True),
    "conflict": Fault(_conflict, slows=True),
    "locked": Fault(_lock, slows=True),
    "crowded": Fault(_crowd),
    "disk": Fault(_damage, leaves=True),
    "promotion": Fault(_promote, leaves=True, last=True),
}
