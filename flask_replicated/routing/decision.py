"""Where the reads of a request go, strongest rule first, and why.

No I/O, and nothing imported from Flask or SQLAlchemy: facts in, decision out.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "ALL_BUSY",
    "ALL_OUT",
    "BEHIND",
    "BLOCKS",
    "BY_NAME",
    "FALLBACKS",
    "LACKING",
    "LOST",
    "MARK",
    "MODEL",
    "NO_REPLICA",
    "OPTIONS",
    "OUTSIDE",
    "OWN_WRITE",
    "PINNED",
    "REPLICA_REASONS",
    "ROLES",
    "SPENT",
    "SWITCHED_OFF",
    "WROTE",
    "Decision",
    "Reason",
    "Role",
    "decide",
    "marked_role",
    "observed",
]

MARK = "__replicated__"
"""The attribute under which a decorator leaves its role on a function."""


class Role(Enum):
    """The two kinds of database server."""

    PRIMARY = "primary"
    REPLICA = "replica"


WROTE = "this request has written, locked or changed its session"
"""Why a request is latched: by its own statement."""

LACKING = "its replica does not have yet what a statement names"
"""Why a request is latched: the primary has answered instead. May be undone."""

LOST = "its replica was lost"
SPENT = "its replica has no connection to spare"
ALL_BUSY = "every replica is busy"
ALL_OUT = "every replica is out"
BEHIND = "no replica has yet what a read must see"

FALLBACKS = frozenset({LACKING, LOST, SPENT, ALL_BUSY, ALL_OUT, BEHIND})
"""The latches that count as a fallback: the request has not asked for the primary."""

Reason: TypeAlias = Literal[
    "bind",
    "block",
    "decorator",
    "fallback",
    "is_read",
    "latched",
    "learnt",
    "method",
    "model",
    "observe",
    "off",
    "option",
    "outside",
    "pinned",
]
"""What brought a read to its server, in one word."""

REPLICA_REASONS: tuple[Reason, ...] = (
    "bind",
    "block",
    "decorator",
    "is_read",
    "method",
    "option",
)
"""Those that can bring one to a replica; each can bring one to the primary."""

ROLES = {
    "master": Role.PRIMARY,
    "primary": Role.PRIMARY,
    "slave": Role.REPLICA,
    "replica": Role.REPLICA,
}
"""The roles by the names that code may use."""


class Decision(NamedTuple):
    """Where reads go for now.

    Attributes:
        role: Primary or replica.
        reason: The rule that decided, as a clause that fits after "because".
        word: The same in one word.
        by_method: Whether nothing but the method decided.
    """

    role: Role
    reason: str
    word: Reason
    by_method: bool = False


PINNED = Decision(Role.PRIMARY, "the client has just written", "pinned")
"""The decision for a pinned client, which must see its own write."""

SWITCHED_OFF = Decision(Role.PRIMARY, "reads are switched off by order", "off")
"""The decision instead of that by the method, while the kill switch is off."""

# The rest is not decided by request, but by block, statement or connection.
BY_NAME = {
    Role.PRIMARY: Decision(Role.PRIMARY, "the primary was asked for by name", "bind"),
    Role.REPLICA: Decision(Role.REPLICA, "a replica was asked for by name", "bind"),
}
BLOCKS = {
    Role.PRIMARY: Decision(Role.PRIMARY, "inside using_master()", "block"),
    Role.REPLICA: Decision(Role.REPLICA, "inside using_slave()", "block"),
}
OPTIONS = {
    role: Decision(role, f"execution_options(replicated='{name}')", "option")
    for name, role in ROLES.items()
    if name in {"master", "slave"}
}
MODEL = Decision(Role.PRIMARY, "its model says __replicated__ = 'master'", "model")
OWN_WRITE = Decision(Role.PRIMARY, "its transaction has written", "latched")
OUTSIDE = Decision(Role.PRIMARY, "there is no request", "outside")
NO_REPLICA = Decision(Role.PRIMARY, "no replica serves it", "fallback")
"""A fallback outside a request, which would know more."""


def observed(decision: Decision) -> Decision:
    """Return the decision on a read that a replica would serve, if there were one."""
    reason = f"REPLICATED_MODE is 'observe'; else a replica: {decision.reason}"
    return Decision(Role.PRIMARY, reason, "observe")


def decide(  # noqa: PLR0911 - one return for each rule, in their order
    *,
    latched: str | None = None,
    mark: Role | None = None,
    known_writer: bool = False,
    pinned: bool = False,
    is_read: bool | None = None,
    method: str,
    readonly_methods: frozenset[str],
    read_on_replica: bool,
) -> Decision:
    """Decide where the reads of one request go.

    Explicit binds and ``using_master()``/``using_slave()`` blocks are stronger
    than all of this and never arrive here.

    Args:
        latched: What tied this request to the primary, or None.
        mark: What a decorator on the view asked for, or None.
        known_writer: Whether a replica has refused a write of this endpoint.
        pinned: Whether the client must see a write that replicas may lack.
        is_read: What ``REPLICATED_IS_READ`` said; None leaves it to the method.
        method: The request's HTTP method.
        readonly_methods: The methods that only read.
        read_on_replica: ``AUTO_READ_ON_SLAVE``.
    """
    if latched is not None:
        fallback = latched in FALLBACKS
        return Decision(Role.PRIMARY, latched, "fallback" if fallback else "latched")
    if mark is not None:
        return Decision(mark, "the view is decorated", "decorator")
    if known_writer:
        refused = "a replica has refused a write of this endpoint"
        return Decision(Role.PRIMARY, refused, "learnt")
    if pinned:
        return PINNED
    if not read_on_replica:
        return Decision(Role.PRIMARY, "AUTO_READ_ON_SLAVE is off", "off")
    if is_read is not None:
        role = Role.REPLICA if is_read else Role.PRIMARY
        return Decision(role, f"REPLICATED_IS_READ says {is_read}", "is_read")
    if method in readonly_methods:
        return Decision(Role.REPLICA, f"{method} only reads", "method", True)
    return Decision(Role.PRIMARY, f"{method} may write", "method", True)


def marked_role(view: object, method: str) -> Role | None:
    """Return what a decorator asked for on a registered view, or None.

    Args:
        view: The view function that would be called.
        method: The request's HTTP method, to look at one method of a class.
    """
    cls = getattr(view, "view_class", None)
    handler = getattr(cls, method.lower(), None)
    if handler is None and method == "HEAD":
        handler = getattr(cls, "get", None)
    for candidate in (handler, view):
        role = getattr(candidate, MARK, None)
        if isinstance(role, str):
            role = ROLES.get(role)
        if isinstance(role, Role):
            return role
    return None
