"""What a strategy gets, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, NoReturn, TypeAlias, TypeVar

if TYPE_CHECKING:
    from .feedback import Feedback

__all__ = ["Member", "Pick", "Strategy"]

T = TypeVar("T")


class Member(Generic[T]):
    """One thing to pick; equal only to itself.

    Attributes:
        name: Its name in the pool.
        target: The thing itself; not shown by ``repr``, as it may hold a password.
        weight: Its share relative to the others; 0 takes no traffic. Only
            :meth:`Pool.reweight` changes it.
        feedback: What the pool's strategy wants to be told of its use; None if it
            wants nothing.
    """

    # A pool keeps weak references to removed members.
    __slots__ = ("__weakref__", "feedback", "name", "target", "weight")

    feedback: Feedback | None
    name: str
    target: T
    weight: int

    def __init__(
        self, name: str, target: T, weight: int, feedback: Feedback | None = None
    ) -> None:
        change(self, name=name, target=target, weight=weight, feedback=feedback)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a member's {name} cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a member's {name} cannot be removed")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, weight={self.weight!r})"

    def __reduce__(self) -> tuple[type[Member[T]], tuple[str, T, int]]:
        return type(self), (self.name, self.target, self.weight)


def change(member: Member[T], **attributes: object) -> None:
    """Set attributes of a member; only its pool may."""
    for name, value in attributes.items():
        object.__setattr__(member, name, value)


Pick: TypeAlias = Callable[[], Member[T]]
Strategy: TypeAlias = Callable[[tuple[Member[T], ...]], Pick[T]]
