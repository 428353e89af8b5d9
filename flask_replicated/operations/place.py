"""What a control place keeps: orders to all workers, and each worker's own account.

What is read from a place is checked as anything from outside is: it may be damaged.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from flask_replicated.settings.validators import MAX_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CLEAR",
    "LOOKS",
    "MOST_REPORTS",
    "REPORTS_LAST",
    "SWITCH",
    "ControlPlace",
    "Order",
    "OrderKey",
    "Orders",
    "is_number",
    "new_order",
    "orders_from",
    "orders_to",
    "read_json",
]

LOOKS = 3
"""For how many looks a worker's account is believed."""

REPORTS_LAST = 7 * 86400.0
"""Seconds for which what a worker has observed is kept, when it has ended, too."""
MOST_REPORTS = 200
"""Of how many workers that is kept, the latest ones."""


class OrderKey(NamedTuple):
    """What an order is about; a later one about the same takes its place.

    Attributes:
        kind: ``'drain'`` or ``'weight'`` of a replica, ``'switch'`` for all reads, or
            ``'clear'`` for what was observed.
        bind: The bind that the replica copies; None is the default one.
        replica: The replica's name; empty for ``'switch'`` and ``'clear'``.
    """

    kind: Literal["drain", "weight", "switch", "clear"]
    bind: str | None = None
    replica: str = ""


class Order(NamedTuple):
    """One order.

    Attributes:
        id: Tells it from every other order.
        value: Of ``'drain'`` whether the replica is drained, of ``'weight'`` its
            weight, of ``'switch'`` whether replicas may be read, of ``'clear'`` true.
        until: When a drain ends by itself, in Unix seconds; None for never.
    """

    id: str
    value: int
    until: float | None = None


Orders = dict[OrderKey, Order]

SWITCH = OrderKey("switch")
"""The kill switch."""

CLEAR = OrderKey("clear")
"""To forget what was observed."""

_KINDS = ("drain", "weight", "switch", "clear")


def new_order(value: int, seconds: float | None = None) -> Order:
    """Return a new order, which ends after so many seconds, or never."""
    until = None if seconds is None else time.time() + seconds
    return Order(secrets.token_hex(8), value, until)


def orders_to(orders: Orders) -> dict[str, str]:
    """Return orders as text, by text that tells what each is about."""
    return {
        json.dumps(key): json.dumps(order._asdict()) for key, order in orders.items()
    }


def orders_from(found: Mapping[str, str]) -> Orders:
    """Return the orders that a text says.

    Raises:
        ValueError: It is damaged.
    """
    return {_key(key): _order(order) for key, order in found.items()}


def read_json(text: str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: It is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def is_number(value: object) -> bool:
    """Whether a value is a finite number, which arithmetic and a clock can take."""
    return isinstance(value, int | float) and abs(value) <= MAX_WEIGHT


def _key(text: str) -> OrderKey:
    found = read_json(text)
    if not (isinstance(found, list) and len(found) == len(OrderKey._fields)):
        raise ValueError("an order says not what it is about")
    kind, bind, replica = found
    fits = kind in _KINDS and isinstance(bind, str | None) and isinstance(replica, str)
    if not fits:
        raise ValueError("an order is about nothing that is known")
    return OrderKey(kind, bind, replica)


def _order(text: str) -> Order:
    found = read_json(text)
    if not (isinstance(found, dict) and found.keys() == set(Order._fields)):
        raise ValueError("an order has not the right parts")
    order = Order(**found)
    until = order.until
    fits = (
        isinstance(order.id, str)
        and isinstance(order.value, int)
        and 0 <= order.value <= MAX_WEIGHT
        and (until is None or is_number(until))
    )
    if not fits:
        raise ValueError("an order has a part of the wrong kind")
    return order


class ControlPlace(Protocol):
    """Where the workers of one application give their accounts and find orders.

    Each method may raise an ``OSError``, a ``ValueError`` for what is damaged, or an
    error of the client's library.
    """

    def read_orders(self) -> Orders | None:
        """Return all orders; None if there never was one, or they have vanished."""

    def put_order(self, key: OrderKey, order: Order) -> None:
        """Add an order, in place of an earlier one about the same.

        Orders that are damaged are replaced.
        """

    def publish(self, name: str, text: str, seconds: float) -> None:
        """Keep a worker's account.

        Args:
            name: The worker.
            text: JSON.
            seconds: For how long it is to be believed.
        """

    def withdraw(self, name: str) -> None:
        """Remove a worker's account, if it is there."""

    def accounts(self) -> list[str]:
        """Return the accounts that are to be believed now."""

    def keep_report(self, name: str, text: str) -> None:
        """Keep what a worker has observed, in place of what it had by an earlier look.

        It stays for :data:`REPORTS_LAST` seconds, also when the worker has ended.

        Args:
            name: The worker.
            text: JSON.
        """

    def reports(self) -> list[str]:
        """Return what workers have observed, of the latest ones."""

    def clear_reports(self) -> None:
        """Remove all of them."""
