"""Redis as the control place of workers on several hosts."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .place import MOST_REPORTS, REPORTS_LAST, orders_from, orders_to

if TYPE_CHECKING:
    from .place import Order, OrderKey, Orders

__all__ = ["RedisPlace"]

_DAY = 86400
"""Seconds after which a worker that was not heard of is forgotten."""


class RedisPlace:
    """A Redis server.

    Accounts have a time to live; orders have none. The accounts' names are in a sorted
    set, as to search all keys would take long on a server that has many.

    Args:
        client: A ``redis.Redis``, with timeouts of its own.
        app: The application's name, by which several can share a server.
    """

    def __init__(self, client: Any, app: str) -> None:
        self._client = client
        # In braces: so a cluster keeps all of them in one place, to be read at once.
        begin = f"flask_replicated:{{{quote(app, safe='')}}}"
        self._orders = f"{begin}:orders"
        self._workers = f"{begin}:workers"
        self._worker = f"{begin}:worker:"
        self._reports = f"{begin}:reports"
        self._report = f"{begin}:report:"

    def read_orders(self) -> Orders | None:
        """Return all orders; None if there are none."""
        kind = _text(self._client.type(self._orders))
        if kind == "none":
            return None
        if kind != "hash":
            raise ValueError("the orders are damaged")
        found = self._client.hgetall(self._orders)
        return orders_from({_text(key): _text(one) for key, one in found.items()})

    def put_order(self, key: OrderKey, order: Order) -> None:
        """Add an order; each is a field of its own, so two at a time lose none."""
        try:
            self.read_orders()
        except ValueError:
            self._client.delete(self._orders)
        self._client.hset(self._orders, mapping=orders_to({key: order}))

    def publish(self, name: str, text: str, seconds: float) -> None:
        """Keep a worker's account for so many seconds."""
        now = time.time()
        with self._client.pipeline(transaction=False) as pipe:
            pipe.set(f"{self._worker}{name}", text, px=math.ceil(seconds * 1000))
            pipe.zadd(self._workers, {name: now})
            pipe.zremrangebyscore(self._workers, "-inf", now - _DAY)
            pipe.expire(self._workers, _DAY)
            pipe.execute()

    def withdraw(self, name: str) -> None:
        """Remove a worker's account."""
        self._client.delete(f"{self._worker}{name}")
        self._client.zrem(self._workers, name)

    def accounts(self) -> list[str]:
        """Return the accounts that are there still."""
        return self._named(self._workers, self._worker)

    def keep_report(self, name: str, text: str) -> None:
        """Keep what a worker has observed; those of the latest workers stay."""
        now, seconds = time.time(), int(REPORTS_LAST)
        with self._client.pipeline(transaction=False) as pipe:
            pipe.set(f"{self._report}{name}", text, ex=seconds)
            pipe.zadd(self._reports, {name: now})
            pipe.zremrangebyscore(self._reports, "-inf", now - seconds)
            pipe.zremrangebyrank(self._reports, 0, -MOST_REPORTS - 1)
            pipe.expire(self._reports, seconds)
            pipe.execute()

    def reports(self) -> list[str]:
        """Return what workers have observed."""
        return self._named(self._reports, self._report)

    def clear_reports(self) -> None:
        """Remove what workers have observed."""
        listed = map(_text, self._client.zrange(self._reports, 0, -1))
        names = [f"{self._report}{name}" for name in listed]
        self._client.delete(self._reports, *names)

    def _named(self, names: str, begins: str) -> list[str]:
        """Return the texts that a set has the names of, as far as they are there."""
        listed = [_text(one) for one in self._client.zrange(names, 0, -1)]
        if not listed:
            return []
        found = self._client.mget([f"{begins}{name}" for name in listed])
        return [_text(one) for one in found if one is not None]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
