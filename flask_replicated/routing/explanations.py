"""Why each read of a request went where it went: for people, logs and traces."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from flask_replicated.errors.redaction import printable

from .decision import Decision, Role
from .flask_context import running_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MAX_KEPT",
    "SERVER_TIMING",
    "TRACING",
    "Explanation",
    "Noted",
    "add_server_timing",
    "explained",
    "logger",
    "tell",
]

logger = logging.getLogger("flask_replicated.routing")

TRACING = "opentelemetry.trace"
"""The module of OpenTelemetry's API; it is used where the program has imported it."""

MAX_KEPT = 100
"""How many reads of one request are kept, the first ones."""

SERVER_TIMING = "Server-Timing"
_MAX_SHOWN = 10  # servers and reasons in one header


class Explanation(NamedTuple):
    """Where one read went, and why.

    Attributes:
        bind: The bind's key; None is the default one.
        role: ``'primary'`` or ``'replica'``.
        replica: The replica's name; None for the primary.
        reason: The rule that decided, as a clause that fits after "because".
    """

    bind: str | None
    role: str
    replica: str | None
    reason: str


Noted: TypeAlias = tuple[str | None, str | None, Decision]
"""What is noted of a read: its bind, its replica (None for the primary), and why.

A plain tuple, since to make a named one is a call.
"""


def explained(noted: Noted) -> Explanation:
    """Return what was noted of a read, for people."""
    bind, replica, decision = noted
    role = Role.PRIMARY if replica is None else Role.REPLICA
    return Explanation(bind, role.value, replica, decision.reason)


def tell(noted: Noted) -> None:
    """Log a read, and add it to the current span of OpenTelemetry; it never fails.

    Args:
        noted: The read.
    """
    try:
        trace = sys.modules.get(TRACING)
        span = None if trace is None else trace.get_current_span()
        if span is not None and span.is_recording():
            span.set_attributes(_attributes(noted))
        if logger.isEnabledFor(logging.DEBUG):
            _log(explained(noted))
    except Exception:
        logger.warning("a read could not be told of", exc_info=True)


def _attributes(noted: Noted) -> dict[str, str]:
    _, replica, decision = noted
    return {
        "replicated.role": "primary" if replica is None else "replica",
        "replicated.replica": replica or "primary",
        "replicated.reason": decision.reason,
    }


def _log(found: Explanation) -> None:
    bind = "" if found.bind is None else f" of the bind {found.bind!r}"
    logger.debug(
        "%s reads from %s%s: %s",
        running_endpoint() or "(no request)",
        printable(found.replica or "the primary"),
        bind,
        found.reason,
        extra={
            "replicated_bind": found.bind,
            "replicated_role": found.role,
            "replicated_replica": found.replica,
            "replicated_reason": found.reason,
        },
    )


def add_server_timing(
    headers: list[tuple[str, str]], noted: Iterable[Noted]
) -> list[tuple[str, str]]:
    """Return a response's headers with one that says where it read, and why.

    A ``Server-Timing`` header that is there already is continued: a client may look at
    the first one only.

    Args:
        headers: The response's headers.
        noted: Its request's reads; each server and reason is shown once.
    """
    shown = list(dict.fromkeys(map(_entry, noted)))
    value = ", ".join(shown[:_MAX_SHOWN])
    for index, (name, before) in enumerate(headers):
        if name.lower() == SERVER_TIMING.lower():
            longer = f"{before}, {value}" if before.strip() else value
            return [*headers[:index], (name, longer), *headers[index + 1 :]]
    return [*headers, (SERVER_TIMING, value)]


def _entry(noted: Noted) -> str:
    """Return one read as a server timing (W3C), whose description is ASCII."""
    bind, replica, decision = noted
    shown = f"{replica or 'primary'}: {decision.reason}"
    if replica is None and bind is not None:
        shown = f"{shown} (bind {bind!r})"
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(one if " " <= one <= "~" else "?" for one in shown)
    if '"' in shown or "\\" in shown:
        shown = shown.replace("\\", "\\\\").replace('"', '\\"')
    return f'db;desc="{shown}"'
