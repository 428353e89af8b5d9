"""A few of many members: who is used, and who comes next."""

from __future__ import annotations

import math
import random
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

from .breaker import check_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .strategies import Member

T = TypeVar("T")


class Subset:
    """A stable choice of a few among many, another one in each process.

    Every name has a place in an order that depends on the name, its weight and a
    random seed, and on nobody else ("rendezvous hashing": D. Thaler and C.
    Ravishankar, 1998). So when one goes, all others keep their order, and the next
    in it takes the place; when it returns, it has its own place again.

    Args:
        limit: how many are used; None for all.

    Raises:
        InvalidSettingError: *limit* is no whole number from 1 up.
    """

    def __init__(self, limit: int | None) -> None:
        if limit is not None:
            check_count("limit", limit)
        self.limit = limit
        self.renew()

    def renew(self) -> None:
        """Draw a new order: for a forked child, which has copied its parent's."""
        self._seed = random.randbytes(16)  # noqa: S311 - no secret

    def order(self, members: Iterable[Member[T]]) -> list[Member[T]]:
        """Return *members*, each of weight 1 or more, from first choice to last."""
        return sorted(members, key=self._place)

    def choose(self, members: tuple[Member[T], ...]) -> tuple[Member[T], ...]:
        """Return the first ones in the order, in the sequence given."""
        if self.limit is None or len(members) <= self.limit:
            return members
        chosen = set(self.order(members)[: self.limit])
        return tuple(member for member in members if member in chosen)

    def _place(self, member: Member[T]) -> float:
        # An exponential variable whose rate is the weight: the least of several is a
        # given one with a probability in proportion to its weight.
        name = member.name.encode("utf-8", "surrogatepass")
        digest = blake2b(name, digest_size=7, key=self._seed).digest()
        part = (int.from_bytes(digest, "big") + 1) / (2**56 + 1)
        return -math.log(part) / member.weight
