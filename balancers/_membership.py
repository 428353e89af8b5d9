"""Who belongs to a pool, and what is left of a member that was removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakSet

from ._slots import Slot
from .breaker import CircuitBreaker, Door, Permit
from .errors import DuplicateMemberError, UnknownMemberError

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

    def acquire(self) -> None:
        """Give no leave."""

    def _ignore(self, *_: object, **__: object) -> bool:
        """Change nothing; without the lock, which serves members of many pools."""
        return False

    failed = succeeded = pause = trip = recover = _ignore


GONE = GoneBreaker()
"""It keeps nothing, so one serves all."""


class Membership(Generic[T]):
    """The members of a pool, by name, and the condition of each.

    Changed under the pool's lock only, and then replaced: others read it meanwhile.

    Args:
        slots: the first members' conditions, in order.

    Attributes:
        slots: the condition of each member, in order.
        names: the members by name.
    """

    def __init__(self, slots: Iterable[Slot[T]]) -> None:
        # Those removed that somebody still holds, and may report on.
        self._gone: WeakSet[Member[T]] = WeakSet()
        self._replace({slot.member: slot for slot in slots})

    def member(self, name: str) -> Member[T]:
        """Return the member of this name.

        Raises:
            UnknownMemberError: there is none.
        """
        try:
            return self.names[name]
        except KeyError:
            raise UnknownMemberError(name, self.names) from None

    def slot(self, member: Member[T]) -> Slot[T]:
        """Return the condition of *member*, which may have been removed meanwhile.

        Raises:
            UnknownMemberError: it has never been a member.
        """
        try:
            return self.slots[member]
        except (KeyError, TypeError):
            if member in self._gone:
                return Slot(member, GONE)
            name = getattr(member, "name", member)
            raise UnknownMemberError(str(name), self.names) from None

    def add(self, slot: Slot[T]) -> None:
        """Take in a new member.

        Raises:
            DuplicateMemberError: a member has its name.
        """
        if slot.member.name in self.names:
            raise DuplicateMemberError(slot.member.name, self.names)
        self._replace({**self.slots, slot.member: slot})

    def remove(self, name: str) -> Member[T]:
        """Let a member go.

        Raises:
            UnknownMemberError: there is none of this name.
        """
        member = self.member(name)
        self._gone.add(member)
        # Reports that are under way look for the breaker once they have the lock.
        self.slots[member].breaker = GONE
        self._replace(
            {one: slot for one, slot in self.slots.items() if one is not member}
        )
        return member

    def _replace(self, slots: dict[Member[T], Slot[T]]) -> None:
        self.slots = slots
        self.names = {member.name: member for member in slots}
