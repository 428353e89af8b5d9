"""The same fault, at the same moment, for all applications under load."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.faults import COMMON, PROXIED, Scene
from tests.chaos.load import Load

from .applications import PLAIN, UNPINNED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from examples.cluster import Cluster, Standby
    from tests.chaos.load import Record
    from tests.chaos.proxy import Proxy
    from tests.chaos.workers import Answer

    from .applications import PeerApp

__all__ = ["FAULTS", "measure_faults"]

_LEFT_OUT: Final = {PLAIN, UNPINNED}
"""What uses no standby, and what promises no more than the others."""
_AFTER: Final = 1.5
_DRAWS: Final = 20
_STALE: Final = "must be there is not"
"""What the load says of a write that its own visitor does not see."""


@contextlib.contextmanager
def _lag(_scene: Scene, standby: Standby) -> Iterator[None]:
    """Let a standby show nothing of what is written."""
    standby.pause_replay()
    yield
    standby.resume_replay()
    standby.wait_replayed()


FAULTS: Final[Mapping[str, tuple[str, Any, float]]] = {
    "well": ("nothing happens", lambda *_: contextlib.nullcontext(), 4.0),
    "lag": ("one standby stops replaying", _lag, 5.0),
    "killed": ("a standby is killed", COMMON["kill"].strike, 3.0),
    "restarted": ("a standby is restarted", COMMON["restart"].strike, 1.0),
    "slow": ("a standby answers half a second late", COMMON["crawling"].strike, 6.0),
    "frozen": (
        "a standby takes connections, and is silent",
        COMMON["frozen"].strike,
        12.0,
    ),
    "promoted": ("a standby becomes a primary", COMMON["promotion"].strike, 8.0),
}
"""By name: what happens, what makes it happen, and for how many seconds."""


class _Visitor:
    def __init__(self, peer: PeerApp) -> None:
        self._client = peer.app.test_client()

    def ask(self, method: str, path: str, **query: object) -> Answer:
        """Send a request; the fields of what is no JSON are empty."""
        response = self._client.open(path, method=method, query_string=query)
        return response.status_code, response.get_json(silent=True) or {}


class _Service:
    workers = 1

    def __init__(self, peer: PeerApp) -> None:
        self._peer = peer

    def visitor(self) -> _Visitor:
        """Return a browser that has not been here yet."""
        return _Visitor(self._peer)


def measure_faults(
    cluster: Cluster,
    proxy: Proxy,
    built: Callable[[], AbstractContextManager[Mapping[str, PeerApp]]],
    names: Sequence[str],
    note: Callable[[str], None],
) -> dict[str, dict[str, dict[str, float]]]:
    """Put all applications under load at once, and let faults strike.

    Args:
        cluster: The servers.
        proxy: In front of the first standby, which is the one that is struck.
        built: Builds the applications anew.
        names: Of the faults.
        note: Told each step.

    Returns:
        By fault, the first being ``well``, and by name: how many ``requests`` there
        were, how many ``failed``, how many ``stale`` reads of a visitor's own write,
        the seconds of the ``slowest``, and what percent of reads ``replicas`` served.
    """
    found = {}
    standby = cluster.standbys[PROXIED]
    for name in names:
        what, strike, seconds = FAULTS[name]
        with _load(built) as loads:
            _wait_until_used(loads, standby.name)
            note(f"fault: {what}, {seconds:g} s")
            scene = Scene(cluster, proxy, next(iter(loads.values()))[1])
            begin = time.monotonic()
            with strike(scene, standby):
                time.sleep(seconds)
            time.sleep(_AFTER)
            found[name] = {
                peer: _outcome(load.since(begin)) for peer, (_, load) in loads.items()
            }
        cluster.heal()
    return found


@contextlib.contextmanager
def _load(
    built: Callable[[], AbstractContextManager[Mapping[str, PeerApp]]],
) -> Iterator[dict[str, tuple[PeerApp, Load]]]:
    with built() as peers, contextlib.ExitStack() as stack:
        yield {
            name: (
                peer,
                stack.enter_context(Load(_Service(peer), threads=3, pause=0.05)),
            )
            for name, peer in peers.items()
            if name not in _LEFT_OUT
        }


def _outcome(records: Sequence[Record]) -> dict[str, float]:
    stale = sum(_STALE in one.error for one in records)
    reads = [one for one in records if one.server]
    replicas = sum(one.server != "primary" for one in reads)
    return {
        "requests": len(records),
        "failed": sum(bool(one.error) for one in records) - stale,
        "stale": stale,
        "slowest": max((one.seconds for one in records), default=0.0),
        "replicas": 100 * replicas / max(1, len(reads)),
    }


def _wait_until_used(loads: Mapping[str, tuple[PeerApp, Load]], server: str) -> None:
    """Wait until each application reads from a server.

    Whose connections lead to the other one by chance opens new ones.
    """
    for _ in range(_DRAWS):
        begin = time.monotonic()
        time.sleep(1)
        missing = [
            peer
            for peer, load in loads.values()
            if all(one.server != server for one in load.since(begin))
        ]
        if not missing:
            return
        for peer in missing:
            peer.dispose()
    raise RuntimeError(f"Nothing leads to {server}.")
