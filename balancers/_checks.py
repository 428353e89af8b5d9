"""Checks of arguments: each raises the error that says what would be right."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .errors import InvalidSettingError, InvalidWeightError, UnknownMemberError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = [
    "check_count",
    "check_fraction",
    "check_seconds",
    "check_weights",
    "is_number",
]


def check_seconds(
    name: str, value: float, *, least: float = 0.0, above: float | None = None
) -> None:
    """Raise InvalidSettingError unless *value* is a finite number in its range."""
    if not (is_number(value) and math.isfinite(value)):
        raise InvalidSettingError(name, value, "a finite number of seconds")
    if above is not None and value <= above:
        raise InvalidSettingError(name, value, f"above {above:g} seconds")
    if value < least:
        raise InvalidSettingError(name, value, f"{least:g} seconds or more")


def check_fraction(name: str, value: float) -> None:
    """Raise InvalidSettingError unless *value* is above 0 and at most 1."""
    if not (is_number(value) and 0 < value <= 1):
        raise InvalidSettingError(name, value, "above 0, and 1 at most")


def check_count(name: str, value: int) -> None:
    """Raise InvalidSettingError unless *value* is a whole number from 1 up."""
    if not _is_whole(value) or value < 1:
        raise InvalidSettingError(name, value, "a whole number, 1 or more")


def check_weights(known: Collection[str], weights: Mapping[str, int]) -> None:
    """Check weights by name.

    Raises:
        UnknownMemberError: A weight is given for a name that is not *known*.
        InvalidWeightError: A weight is no whole number from 0 up.
    """
    for name, weight in weights.items():
        if name not in known:
            raise UnknownMemberError(name, known)
        if not _is_whole(weight) or weight < 0:
            raise InvalidWeightError(name, weight)


def is_number(value: object) -> bool:
    """Whether this is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
