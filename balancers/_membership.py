"""The members of a pool, and what is left of one that was removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakSet

from ._records import MemberRecord
from .breaker import CircuitBreaker, Permit, Status
from .errors import DuplicateMemberError, UnknownMemberError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._member import Member

__all__ = ["Membership"]

T = TypeVar("T")

_VOID = Permit(-1, quiet=True)


class RemovedBreaker(CircuitBreaker):
    """The breaker of a removed member: always open, and it ignores every report.

    It replaces the member's own breaker. So a report that was under way when the
    member was removed, or that comes later, changes nothing and is no error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._status = Status("open", _VOID, failures=1)

    def acquire(self) -> None:
        """Never give a permit."""

    def _ignore(self, *_: object, **__: object) -> bool:
        """Change nothing, and take no lock: members of many pools share it."""
        return False

    failed = succeeded = pause = trip = recover = _ignore


_REMOVED = RemovedBreaker()  # without state of its own, so all removed members share it


class Membership(Generic[T]):
    """The members of a pool, with a record for each.

    It is changed under the pool's lock only. A change replaces the mappings, so they
    may be read without the lock.

    Args:
        records: The first members' records, in order.

    Attributes:
        records: The record of each member, in order.
        names: The members by name.
    """

    def __init__(self, records: Iterable[MemberRecord[T]]) -> None:
        # Removed members that a caller still holds, and may report on.
        self._removed: WeakSet[Member[T]] = WeakSet()
        self._replace({record.member: record for record in records})

    def member(self, name: str) -> Member[T]:
        """Return the member of this name.

        Raises:
            UnknownMemberError: There is none.
        """
        try:
            return self.names[name]
        except KeyError:
            raise UnknownMemberError(name, self.names) from None

    def record(self, member: Member[T]) -> MemberRecord[T]:
        """Return the record of *member*, which may have been removed meanwhile.

        Raises:
            UnknownMemberError: It has never been a member.
        """
        try:
            return self.records[member]
        except (KeyError, TypeError):
            if member in self._removed:
                return MemberRecord(member, _REMOVED)
            name = getattr(member, "name", member)
            raise UnknownMemberError(str(name), self.names) from None

    def add(self, record: MemberRecord[T]) -> None:
        """Add a new member.

        Raises:
            DuplicateMemberError: A member has its name.
        """
        if record.member.name in self.names:
            raise DuplicateMemberError(record.member.name, self.names)
        self._replace({**self.records, record.member: record})

    def remove(self, name: str) -> Member[T]:
        """Remove a member and return it.

        Raises:
            UnknownMemberError: There is none of this name.
        """
        member = self.member(name)
        self._removed.add(member)
        # A report under way reads the breaker once it has the lock.
        self.records[member].breaker = _REMOVED
        self._replace(
            {one: record for one, record in self.records.items() if one is not member}
        )
        return member

    def _replace(self, records: dict[Member[T], MemberRecord[T]]) -> None:
        self.records = records
        self.names = {member.name: member for member in records}
