"""What may happen to any replica: one function for each fault.

A fault is a context manager: it strikes when it is entered and is over when it is
left. How long it stays is decided by whoever enters it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from examples.cluster import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from .load import Load
    from .proxy import Proxy
    from .servers import Servers, Standby

__all__ = ["COMMON", "PROXIED", "Fault", "Scene"]

PROXIED: Final = 0
"""The standby that stands behind the proxy."""


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
    """

    strike: Callable[[Scene, Any], AbstractContextManager[object]]
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
    "slow": Fault(_delay, slows=True, proxied=True),
    "reset": Fault(_reset, brief=True, proxied=True),
    "all-down": Fault(_all_down, leaves=True, everyone=True),
    "promotion": Fault(_promote, leaves=True, last=True),
}
"""What may happen to a replica of any kind."""
