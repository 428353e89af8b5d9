"""What may happen to any replica, or to the primary: one function for each fault.

A fault is a context manager: it strikes when it is entered and is over when it is
left. How long it stays is decided by whoever enters it.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from examples.cluster import wait_until

from .load import WRITE_EVERY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from .load import Load
    from .proxy import Proxy
    from .servers import Servers, Standby

__all__ = ["COMMON", "PROXIED", "Fault", "Scene"]

PROXIED: Final = 0
"""The standby that stands behind the proxy; or behind a pooler, in a run of its own."""


_NEVER: Final = 1_000_000_000


@dataclass(frozen=True)
class Scene:
    """What a fault may touch.

    Attributes:
        cluster: The servers.
        proxy: In front of the standby `PROXIED`.
        load: What goes on meanwhile.
    """

    cluster: Servers
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
        seconds: How long it stays at the least.
        pooled: Whether it needs a connection pooler in front of the standby.
    """

    strike: Callable[[Scene, Any], AbstractContextManager[object]]
    hangs: bool = False
    leaves: bool = False
    slows: bool = False
    everyone: bool = False
    proxied: bool = False
    brief: bool = False
    last: bool = False
    seconds: float = 0.0
    pooled: bool = False


@contextlib.contextmanager
def _kill(_scene: Scene, standby: Standby) -> Iterator[None]:
    standby.kill()
    yield
    standby.start()


@contextlib.contextmanager
def _restart(_scene: Scene, standby: Standby) -> Iterator[None]:
    standby.restart()
    yield


@contextlib.contextmanager
def _freeze(_scene: Scene, standby: Standby) -> Iterator[None]:
    standby.freeze()
    yield
    standby.thaw()


@contextlib.contextmanager
def _refuse(_scene: Scene, standby: Standby) -> Iterator[None]:
    standby.stop()
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
def _dead_host(scene: Scene, _standby: Standby) -> Iterator[None]:
    """Let what is open say nothing any more, and turn new connections away at once."""
    scene.proxy.refusing = True
    scene.proxy.silence_open()
    try:
        yield
    finally:
        scene.proxy.refusing = False
        scene.proxy.speak()


@contextlib.contextmanager
def _lost_flows(scene: Scene, _standby: Standby) -> Iterator[None]:
    """Let what is open say nothing any more; new connections are served."""
    scene.proxy.silence_open()
    try:
        yield
    finally:
        scene.proxy.speak()


def _delayed(seconds: float) -> Callable[[Scene, Any], AbstractContextManager[object]]:
    @contextlib.contextmanager
    def delay(scene: Scene, _standby: Standby) -> Iterator[None]:
        scene.proxy.delay = seconds
        try:
            yield
        finally:
            scene.proxy.delay = 0.0

    return delay


@contextlib.contextmanager
def _without_primary(
    scene: Scene, strike: Callable[[], object], repair: Callable[[], object]
) -> Iterator[None]:
    """Let something happen to the primary, whose standbys are well."""
    scene.load.primary_struck = True
    try:
        strike()
        yield
        repair()
        scene.cluster.wait_replicated()
    finally:
        scene.load.primary_struck = False


def _primary_dies(scene: Scene, _standby: Standby) -> AbstractContextManager[None]:
    primary = scene.cluster.primary
    return _without_primary(scene, primary.kill, primary.start)


def _primary_hangs(scene: Scene, _standby: Standby) -> AbstractContextManager[None]:
    primary = scene.cluster.primary
    return _without_primary(scene, primary.freeze, primary.thaw)


@contextlib.contextmanager
def _stale_primary(scene: Scene, standby: Standby) -> Iterator[None]:
    """Restart the primary, then let its old connections be all that is left."""
    # Writes that take a while, all at once, so that the connection pool is full.
    scene.load.write_every, scene.load.hold = 1, 0.2
    time.sleep(1)
    # Then none that would find out that its connections are dead.
    scene.load.write_every, scene.load.hold = _NEVER, 0.0
    time.sleep(0.5)
    scene.cluster.primary.restart()
    scene.load.write_every = WRITE_EVERY
    with _all_down(scene, standby):
        yield


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


@contextlib.contextmanager
def _promote(scene: Scene, standby: Standby) -> Iterator[None]:
    standby.promote()
    yield
    standby.rebuild()
    wait_until(lambda: not standby.is_promoted, f"{standby.name} to be a standby")
    scene.cluster.wait_replicated()


COMMON: Final[Mapping[str, Fault]] = {
    "kill": Fault(_kill, brief=True),
    "restart": Fault(_restart, brief=True),
    "frozen": Fault(_freeze, hangs=True),
    "refused": Fault(_refuse, leaves=True),
    "black-hole": Fault(_black_hole, hangs=True, leaves=True, proxied=True),
    "dead-host": Fault(_dead_host, hangs=True, leaves=True, proxied=True),
    "lost-flows": Fault(_lost_flows, hangs=True, proxied=True),
    "slow": Fault(_delayed(0.05), slows=True, proxied=True),
    "crawling": Fault(_delayed(0.5), slows=True, proxied=True),
    "reset": Fault(_reset, brief=True, proxied=True),
    "all-down": Fault(_all_down, leaves=True, everyone=True),
    "stale-primary": Fault(_stale_primary, leaves=True, everyone=True),
    "primary-dead": Fault(_primary_dies, everyone=True, seconds=60),
    "primary-frozen": Fault(_primary_hangs, everyone=True, seconds=15),
    "promotion": Fault(_promote, leaves=True, last=True),
}
"""What may happen to a replica of any kind."""
