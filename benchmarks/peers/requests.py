"""A whole GET and a whole POST by each application, in turn."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.apps import Client

from .applications import PLAIN
from .picks import quartiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .applications import PeerApp

__all__ = ["measure_requests"]

_ROUNDS = {"GET": 400, "POST": 200}


def measure_requests(
    peers: Mapping[str, PeerApp], note: Callable[[str], None]
) -> dict[str, dict[str, dict[str, float]]]:
    """Send one request to each application in turn, again and again.

    Args:
        peers: The applications.
        note: Told each step.

    Returns:
        By method and name: the ``median`` in microseconds, its quartiles ``low`` and
        ``high``, and ``ratio``, the median of all ratios to the plain application's
        request of the same round.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method, rounds in _ROUNDS.items():
        note(f"request: {rounds} rounds of a {method} by each of {len(peers)}")
        clients = {
            name: Client(peer.app, "/notes/42", method).checked()
            for name, peer in peers.items()
        }
        for client in clients.values():
            for _ in range(20):
                client.send()
        times: dict[str, list[float]] = {name: [] for name in peers}
        names = list(clients)
        for number in range(rounds):
            turn = number % len(names)
            for name in [*names[turn:], *names[:turn]]:
                begin = time.perf_counter()
                clients[name].send()
                times[name].append((time.perf_counter() - begin) * 1e6)
        plain = times[PLAIN]
        found[method] = {
            name: {
                **quartiles(taken),
                "ratio": statistics.median(
                    mine / other for mine, other in zip(taken, plain, strict=True)
                ),
            }
            for name, taken in times.items()
        }
    return found
