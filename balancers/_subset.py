"""A stable random choice of a few among many members."""

from __future__ import annotations

import math
import random
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

from ._checks import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ._member import Member

    Prefer = Callable[
        [Sequence[Member[Any]], Sequence[Member[Any]]], Sequence[Member[Any]]
    ]

__all__ = ["Subset"]

T = TypeVar("T")


class Subset:
    """Chooses a few among many members, others in each process.

    Each member's rank depends on its name, its weight and a random seed, and not on
    the other members ("rendezvous hashing": D. Thaler and C. Ravishankar, 1998). When
    one leaves, the others keep their order and the next one replaces it; when it
    returns, it has its old rank again.

    Args:
        limit: The most members to choose; None for no limit.
        prefer: Takes members by rank, and as they were given; returns them with the
            first choice first. None to go by rank.

    Raises:
        InvalidSettingError: *limit* is no whole number from 1 up.
    """

    def __init__(self, limit: int | None, prefer: Prefer | None = None) -> None:
        if limit is not None:
            check_count("limit", limit)
        self.limit = limit
        self._prefer = prefer
        self.renew()

    def renew(self) -> None:
        """Draw a new seed, for a forked child, which has a copy of its parent's."""
        self._seed = random.randbytes(16)  # noqa: S311 - no secret

    def order(self, members: Iterable[Member[T]]) -> list[Member[T]]:
        """Return *members*, first choice first."""
        given = [*members]
        return self.sort(sorted(given, key=self._rank), given)

    def sort(
        self, members: list[Member[Any]], given: Sequence[Member[Any]]
    ) -> list[Member[Any]]:
        """Return *members* as the strategy prefers them, or in their own order."""
        return members if self._prefer is None else [*self._prefer(members, given)]

    def choose(self, members: tuple[Member[T], ...]) -> tuple[Member[T], ...]:
        """Return the first choices among *members*, in the sequence given."""
        if self.limit is None or len(members) <= self.limit:
            return members
        chosen = set(self.order(members)[: self.limit])
        return tuple(member for member in members if member in chosen)

    def _rank(self, member: Member[T]) -> float:
        # An exponential variable whose rate is the weight: the probability of being
        # the least of several is proportional to the weight.
        name = member.name.encode("utf-8", "surrogatepass")
        digest = blake2b(name, digest_size=7, key=self._seed).digest()
        part = (int.from_bytes(digest, "big") + 1) / (2**56 + 1)
        # Of weight 0 if it was given that just now: then it leaves at once.
        return -math.log(part) / max(1, member.weight)
