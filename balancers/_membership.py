"""What is left of a member that was removed, and who of many is used."""

from __future__ import annotations

import math
import random
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

from .breaker import CircuitBreaker, Door, Permit, check_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .strategies import Member

T = TypeVar("T")

_NO_NEWS = Permit(-1, quiet=True)


class GoneBreaker(CircuitBreaker):
    """The breaker of a member that was removed: for ever open, deaf to reports.

    It takes the place of the member's own. So a report that was under way when the
    member was removed, or that comes later, changes nothing and is no error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._door = Door("open", _NO_NEWS, failures=1)

    @property
    def quiet(self) -> bool:
        """Always true: a success would teach it nothing."""
        return True

    def acquire(self) -> Permit | None:
        """Give no leave."""
        return None

    def failed(self, permit: Permit | None = None) -> bool:  # noqa: ARG002 - deaf
        """Change nothing."""
        return False

    def succeeded(self, permit: Permit | None = None) -> bool:  # noqa: ARG002 - deaf
        """Change nothing."""
        return False

    def rest(self, seconds: float, permit: Permit | None = None) -> bool:  # noqa: ARG002 - deaf
        """Change nothing."""
        return False

    def trip(self, seconds: float) -> bool:  # noqa: ARG002 - deaf
        """Change nothing."""
        return False

    def recover(self, permit: Permit | None = None) -> bool:  # noqa: ARG002 - deaf
        """Change nothing."""
        return False


GONE = GoneBreaker()
"""It keeps nothing, so one serves all."""


class Subset:
    """A stable choice of a few among many, another one in each process.

    Every name has a place in an order that depends on the name, its weight and a
    random seed, and on nobody else ("rendezvous hashing": D. Thaler and C.
    Ravishankar, 1998). So when one goes, all others keep their order, and the next
    in it takes the place; when it returns, it has its own place again.

    Args:
        limit: how many are used; None for all.

    Raises:
        InvalidSetting: *limit* is no whole number from 1 up.
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
