"""What is known of all replicas: by the workers' accounts, or by asking the servers."""

from __future__ import annotations

import time
from collections import Counter
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import current_app

from balancers.errors import error_text

from .accounts import WORST_FIRST, accounts_in
from .asking import ask_servers
from .current import current_place, current_routes
from .place import SWITCH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .accounts import Account, ReplicaRecord
    from .place import Order, OrderKey, Orders

__all__ = ["FleetStatus", "Health", "fleet_status", "merged", "no_workers_note"]


class Health(IntEnum):
    """How well replicas serve; also the exit code that says so."""

    WELL = 0
    SOME_OUT = 1
    ALL_OUT = 2


class FleetStatus(NamedTuple):
    """What is known of all replicas.

    Attributes:
        binds: Each replica, with how many workers see it in which state, by bind;
            ``''`` is the default one.
        workers: The workers whose accounts these are; none if the servers were asked.
        off: Whether reads are switched off from replicas, as ordered or configured.
        note: Why there are no workers' accounts; None if there are.
    """

    binds: dict[str, list[ReplicaRecord]]
    workers: list[Account]
    off: bool
    note: str | None

    @property
    def health(self) -> Health:
        """The worst that holds for any bind. Drained and weight 0 are no outage."""
        return max(map(_health, self.binds.values()), default=Health.WELL)

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {
            "binds": {bind: {"replicas": found} for bind, found in self.binds.items()},
            "workers": [
                {"host": one.host, "pid": one.pid, "seen": one.seen}
                for one in self.workers
            ],
            "off": self.off,
        }


def _health(replicas: list[ReplicaRecord]) -> Health:
    wanted = [one for one in replicas if one["state"] != "drained" and one["weight"]]
    out = sum(one["state"] != "closed" for one in wanted)
    if not replicas or (wanted and out == len(wanted)):
        return Health.ALL_OUT
    return Health.SOME_OUT if out else Health.WELL


def fleet_status() -> FleetStatus:
    """Return what is known of the current application's replicas."""
    place, routes = current_place(), current_routes()
    accounts: list[Account] = []
    orders: Orders | None = None
    note = "There is no control place (REPLICATED_CONTROL), so the servers were asked."
    if place is not None:
        note = f"{no_workers_note()} So the servers were asked."
        try:
            accounts = accounts_in(place)
            orders = place.read_orders()
        except Exception as error:  # noqa: BLE001 - a client's library raises its own
            note = f"The control place cannot be read: {error_text(error).rstrip('.')}."
    configured = all(one.app.settings.read_on_replica for one in routes.values())
    if orders is None or SWITCH not in orders:
        off = any(one.off for one in accounts)
    else:
        off = not orders[SWITCH].value
    if accounts:
        return FleetStatus(merged(accounts), accounts, off or not configured, None)
    found = ask_servers(routes)
    if any(one.app.observation for one in routes.values()):
        found = {bind: replicas for bind, replicas in found.items() if replicas}
    for key, order in (orders or {}).items():
        for one in found.get(key.bind or "", ()):
            if one["name"] == key.replica:
                one.update(_ordered(key, order))
    return FleetStatus(found, [], off or not configured, note)


def no_workers_note() -> str:
    """Return what to say where the control place knows no worker, and why that is."""
    return (
        "No worker is known in the control place. One enters it with its first read, "
        "if it has this command's REPLICATED_CONTROL, name of the application "
        f"({current_app.name!r}) and, for a directory, user."
    )


def _ordered(key: OrderKey, order: Order) -> ReplicaRecord:
    """Return what an order makes of a replica, where no worker tells."""
    if key.kind == "weight":
        return {"weight": order.value}
    over = order.until is not None and time.time() >= order.until
    if not order.value or over:
        return {}
    return {"state": "drained", "reason": "drained"}


def merged(accounts: Iterable[Account]) -> dict[str, list[ReplicaRecord]]:
    """Return each replica once, as the worker sees it that sees the worst."""
    seen: dict[str, dict[str, list[ReplicaRecord]]] = {}
    for account in accounts:
        for bind, replicas in account.binds.items():
            for one in replicas:
                seen.setdefault(bind, {}).setdefault(one["name"], []).append(one)
    return {
        bind: [_worst(found) for found in replicas.values()]
        for bind, replicas in sorted(seen.items())
    }


def _worst(found: list[ReplicaRecord]) -> ReplicaRecord:
    worst = min(found, key=lambda one: WORST_FIRST.index(one["state"]))
    lags = [one["lag_seconds"] for one in found if one["lag_seconds"] is not None]
    return {
        **worst,
        "lag_seconds": max(lags, default=None),
        "workers": dict(Counter(one["state"] for one in found)),
    }
