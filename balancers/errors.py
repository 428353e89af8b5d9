"""Errors that carry their data, and the text of other people's errors made safe."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "BalancerError",
    "DuplicateMemberError",
    "InvalidPickError",
    "InvalidSettingError",
    "InvalidWeightError",
    "NoMemberAvailableError",
    "UnknownBalancerError",
    "UnknownMemberError",
    "error_text",
    "redact",
]

TEXT_LIMIT = 300
"""Characters of a foreign error's text that :func:`error_text` keeps."""

# A password may have blanks in it, and what holds it only look like a URL.
_URL_PASSWORD = re.compile(r"(//[^\s:/]*):[^\n]*@|(\b[\w.+-]+):(?!//)\S+@")
_NAMED_PASSWORD = re.compile(
    r"""
    (\w*(?:password|passwd|passphrase|pwd|secret|token)\w*
     (?:\s*=\s*|['"]\s*[:=]\s*))       # password=  'password':  "password" =
    (?:'(?:[^'\\]|\\.)*(?:'|$)         # an unfinished quotation hides the rest
     |"(?:[^"\\]|\\.)*(?:"|$)
     |\S+)
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def redact(text: str) -> str:
    """Return *text* with the passwords in URLs and ``password=…`` pairs hidden.

    It rather hides too much than too little: whatever stands between the user name
    of a URL and the last ``@`` of the same line goes.
    """
    return _NAMED_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1\2:***@", text))


def error_text(error: BaseException) -> str:
    """Return one short line about *error* without any password.

    Args:
        error: any exception; neither it nor its traceback is kept.

    Returns:
        ``"TypeName: first line of its message"``, at most :data:`TEXT_LIMIT`
        characters after the type's name; the name alone for an empty message or one
        whose ``str`` fails.
    """
    name = type(error).__name__
    try:
        text = redact(str(error)).strip()
    except Exception:  # noqa: BLE001 - a foreign __str__ must not hide the real error
        return name
    line = text.splitlines()[0].strip() if text else ""
    if len(line) > TEXT_LIMIT:
        line = line[: TEXT_LIMIT - 1] + "…"
    return f"{name}: {line}" if line else name


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _shown(value: object) -> str | float | None:
    """Return a value as an error keeps it: plain, so it pickles, and redacted."""
    if value is None or isinstance(value, (int, float)):
        return value
    return redact(value if isinstance(value, str) else repr(value))


class BalancerError(Exception):
    """Root of every error of this package.

    The arguments are the data, ``str()`` is the message; so each one pickles.
    """


class NoMemberAvailableError(BalancerError):
    """Nobody is left to pick.

    Attributes:
        causes: for every member of the pool, by name, why it is out.
    """

    def __init__(self, causes: Mapping[str, str]) -> None:
        self.causes = dict(causes)
        super().__init__(self.causes)

    def __str__(self) -> str:
        if not self.causes:
            return "No member is available: the pool has none."
        listed = "; ".join(f"{name!r}: {cause}" for name, cause in self.causes.items())
        return f"No member is available: {listed}."


class UnknownMemberError(BalancerError, KeyError):
    """A member, or a member's name, that the pool does not have.

    Attributes:
        name: the name asked for.
        known: the names of the pool's members.
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(name, self.known)

    def __str__(self) -> str:
        if self.name in self.known:
            return f"The member {self.name!r} given here belongs to another pool."
        return f"No member {self.name!r}; the pool knows {_names(self.known)}."


class DuplicateMemberError(BalancerError, ValueError):
    """A name for a new member that one of the pool's members has.

    Attributes:
        name: the name given.
        known: the names of the pool's members.
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(name, self.known)

    def __str__(self) -> str:
        return (
            f"There is a member {self.name!r} already; remove it first, or take a name "
            f"other than {_names(self.known)}."
        )


class UnknownBalancerError(BalancerError, ValueError):
    """A value that is no balancer and names none.

    Attributes:
        value: what was given: a string, number or None as it is, else its ``repr``;
            passwords are hidden.
        known: the names that would have been right.
        reason: what is wrong with it.
    """

    def __init__(self, value: object, known: Iterable[str], reason: str) -> None:
        self.value = _shown(value)
        self.known = tuple(known)
        self.reason = redact(reason)
        super().__init__(self.value, self.known, self.reason)

    def __str__(self) -> str:
        return (
            f"{self.value!r} is no balancer: {self.reason}. Give one of "
            f"{_names(self.known)}, a dotted path such as 'package.module.name', "
            "a class, or a callable that takes the live members."
        )


class InvalidPickError(BalancerError, TypeError):
    """A balancer returned something that cannot be called, or that picked no member.

    Attributes:
        balancer: ``repr`` of the balancer.
        returned: ``repr`` of what it returned.
    """

    def __init__(self, balancer: object, returned: object) -> None:
        self.balancer = str(_shown(balancer))
        self.returned = str(_shown(returned))
        super().__init__(self.balancer, self.returned)

    def __str__(self) -> str:
        return (
            f"The balancer {self.balancer} must return a pick function without "
            f"arguments, which returns one of the members, not {self.returned}."
        )


class InvalidWeightError(BalancerError, ValueError):
    """A weight that is no whole number from 0 up.

    Attributes:
        name: the member.
        weight: what was given: a number or string as it is, else its ``repr``.
    """

    def __init__(self, name: str, weight: object) -> None:
        self.name = name
        self.weight = _shown(weight)
        super().__init__(name, self.weight)

    def __str__(self) -> str:
        return (
            f"The weight of {self.name!r} must be a whole number, 0 (no traffic) "
            f"or more, not {self.weight!r}."
        )


class InvalidSettingError(BalancerError, ValueError):
    """A number that a breaker or pool cannot work with.

    Attributes:
        name: the argument.
        value: what was given: a number or string as it is, else its ``repr``.
        wanted: what would be right.
    """

    def __init__(self, name: str, value: object, wanted: str) -> None:
        self.name = name
        self.value = _shown(value)
        self.wanted = wanted
        super().__init__(name, self.value, wanted)

    def __str__(self) -> str:
        return f"{self.name}={self.value!r}: must be {self.wanted}."
