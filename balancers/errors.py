"""Errors that carry their data, and error texts without passwords."""

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
    "WeightsUnreadError",
    "error_text",
    "redact",
]

TEXT_LIMIT = 300
"""Characters of an error's text that :func:`error_text` keeps."""

# All of these take a time that grows no faster than the text: it may be a statement
# of megabytes.
# A password may contain blanks, and the text around it may only look like a URL.
_URL_USER = re.compile(r"//[^\s:/]*:")
_WORD = re.compile(r"\S+")
_LOGIN = re.compile(r"(?<=[\w.+-]):(?!//).")
_SECRET_NAME = (
    r"password|passwd|passphrase|\bpass\b|pwd|secret|token|credential"  # noqa: S105
    r"|(?:api|access|account|private)_?key|identified\s+by\b"
)
_NAMED_PASSWORD = re.compile(
    rf"""
    ((?:{_SECRET_NAME})(?:(?!{_SECRET_NAME})\w)*
     (?:\s*=\s*                        # password=
      |['"]\s*[:=]\s*                   # 'password':  "password" =
      |:\s+(?!(?:yes|no)\))             # password:  not (using password: NO)
      |\s+(?=['"])))                    # IDENTIFIED BY '
    (?:'(?:[^'\\]|\\.)*(?:'|$)         # an unfinished quotation hides the rest
     |"(?:[^"\\]|\\.)*(?:"|$)
     |\S+)
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def redact(text: str) -> str:
    """Return *text* with the passwords in URLs and ``password=…`` pairs hidden.

    It hides too much rather than too little: everything between the user name of a
    URL and the last ``@`` of the same line.
    """
    if "@" in text:
        text = "\n".join(map(_without_logins, text.split("\n")))
    return _NAMED_PASSWORD.sub(r"\1***", text)


def _without_logins(line: str) -> str:
    head, at, tail = line.rpartition("@")
    if not at:
        return line
    user = _URL_USER.search(head)
    if user is not None:
        head = f"{head[: user.end()]}***"
    return _WORD.sub(_without_login, f"{head}@") + tail


def _without_login(word: re.Match[str]) -> str:
    head, at, tail = word[0].rpartition("@")
    login = _LOGIN.search(head)
    return word[0] if login is None else f"{head[: login.start()]}:***{at}{tail}"


def error_text(error: BaseException) -> str:
    """Return one short line about *error* without any password.

    Args:
        error: Any exception; neither it nor its traceback is kept.

    Returns:
        ``"TypeName: first line of its message"``, at most :data:`TEXT_LIMIT`
        characters after the type's name; the name alone if the message is empty or
        ``str(error)`` fails. What no encoding has, as a part of a file's name may be,
        is escaped.
    """
    name = type(error).__name__
    try:
        text = redact(str(error)).strip()
        text = text.encode(errors="backslashreplace").decode()
    except Exception:  # noqa: BLE001 - a faulty __str__ must not hide the real error
        return name
    line = text.splitlines()[0].strip() if text else ""
    if len(line) > TEXT_LIMIT:
        line = line[: TEXT_LIMIT - 1] + "…"
    return f"{name}: {line}" if line else name


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _shown(value: object) -> str | float | None:
    """Return *value* in a form that pickles and shows no password."""
    if value is None or isinstance(value, (int, float)):
        return value
    return redact(value if isinstance(value, str) else repr(value))


class BalancerError(Exception):
    """Root of every error of this package.

    ``args`` is the data and ``str()`` the message, so each error pickles.
    """


class NoMemberAvailableError(BalancerError):
    """No member is left to pick.

    Attributes:
        causes: For every member of the pool, by name, why it is out.
    """

    def __init__(self, causes: Mapping[str, str]) -> None:
        self.causes = dict(causes)
        super().__init__(self.causes)

    def __str__(self) -> str:
        if not self.causes:
            return "No member is available: the pool has none."
        listed = "; ".join(f"{name!r}: {cause}" for name, cause in self.causes.items())
        return f"No member is available: {listed}."


class _MemberNameError(BalancerError):
    """A name that the members of a pool do not allow.

    Attributes:
        name: The name given.
        known: The names of the pool's members.
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(name, self.known)


class UnknownMemberError(_MemberNameError, KeyError):
    """A member, or a member's name, that the pool does not have."""

    def __str__(self) -> str:
        if self.name in self.known:
            return f"The member {self.name!r} given here belongs to another pool."
        return f"No member {self.name!r}; the pool knows {_names(self.known)}."


class DuplicateMemberError(_MemberNameError, ValueError):
    """The name of a new member is that of an existing one."""

    def __str__(self) -> str:
        return (
            f"There is a member {self.name!r} already; remove it first, or take a name "
            f"other than {_names(self.known)}."
        )


class UnknownBalancerError(BalancerError, ValueError):
    """A value that neither is nor names a balancer.

    Attributes:
        value: What was given: a string, number or None unchanged, else its ``repr``;
            passwords are hidden.
        known: The names that would have been right.
        reason: What is wrong with it.
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
    """A balancer's result cannot be called, or a pick returned no member.

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
        name: The member.
        weight: What was given: a number or string unchanged, else its ``repr``.
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


class WeightsUnreadError(BalancerError, TypeError):
    """Weights are to be changed that the balancer does not read.

    Attributes:
        balancer: ``repr`` of the balancer.
    """

    def __init__(self, balancer: object) -> None:
        self.balancer = str(_shown(balancer))
        super().__init__(self.balancer)

    def __str__(self) -> str:
        return (
            f"{self.balancer} reads no weights; Weighted() does. To take a member out, "
            "drain it."
        )


class InvalidSettingError(BalancerError, ValueError):
    """An argument of a breaker or pool that is out of its range.

    Attributes:
        name: The argument.
        value: What was given: a number or string unchanged, else its ``repr``.
        wanted: What would be right.
    """

    def __init__(self, name: str, value: object, wanted: str) -> None:
        self.name = name
        self.value = _shown(value)
        self.wanted = wanted
        super().__init__(name, self.value, wanted)

    def __str__(self) -> str:
        return f"{self.name}={self.value!r}: must be {self.wanted}."
