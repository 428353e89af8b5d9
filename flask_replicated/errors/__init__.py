"""The errors of this package, under one root.

Each error keeps its data as attributes and survives pickling, so it can be sent to an
error tracker or to another process.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy.exc import OperationalError

from balancers.errors import redact

from .redaction import safe

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AllReplicasOutError",
    "ConfigurationError",
    "DivergedReplicaError",
    "ExhaustedError",
    "MisconfiguredReplicaError",
    "PrimaryUnavailableError",
    "ReplicaLagsError",
    "ReplicaSilentError",
    "ReplicatedError",
    "StaleReadError",
    "UnansweredError",
    "UnfitReplicaError",
    "WriteOnReplicaError",
    "WrongRoleError",
]


class ReplicatedError(Exception):
    """The root of every error raised by ``flask_replicated``."""


class ConfigurationError(ReplicatedError, ValueError):
    """A setting or a bind cannot be used as it stands.

    Attributes:
        key: The setting or bind, in Python syntax.
        value: Its value without passwords; a description if it cannot be shown or
            pickled.
        remedy: One sentence that says what would be right.
    """

    def __init__(self, key: str, value: object, remedy: str) -> None:
        # Only what can be shown is kept: an error may be pickled and sent away.
        self.key = redact(key)
        self.value = safe(value, key.partition("[")[0])
        self.remedy = redact(remedy)
        super().__init__(self.key, self.value, self.remedy)

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.remedy}"


_MAX_STATEMENT = 200  # characters


def _beginning(statement: object) -> str:
    """Return the beginning of a statement on one line, without passwords."""
    text = redact(" ".join(str(statement).split()))
    return text if len(text) <= _MAX_STATEMENT else f"{text[: _MAX_STATEMENT - 1]}…"


class WriteOnReplicaError(ReplicatedError):
    """A statement that writes or locks was about to run on a replica.

    It was not sent, or the replica refused it; nothing was changed. If the replica
    refused it, the driver's error is the ``__cause__``.

    Attributes:
        statement: The beginning of the statement, without its parameters.
        view: The endpoint of the request, or None outside a request.
        why: What refused the statement: the block or option that asked for a replica,
            the connection to one, or the replica's server.
    """

    def __init__(self, statement: object, view: str | None, why: str) -> None:
        self.statement = _beginning(statement)
        self.view = view
        self.why = why
        super().__init__(self.statement, view, why)

    def __str__(self) -> str:
        place = "code outside a request" if self.view is None else f"view {self.view!r}"
        said = f"{place} tried to write on a replica ({self.why}): {self.statement}."
        # An explicit wish is stronger than a decorator, and holds for begin() too.
        if self.why.startswith("execution_options"):
            return f"{said} Leave this option out where the statement writes."
        inside = "or wrap the write in 'with using_master():'"
        if self.view is None:
            return f"{said} Leave 'using_slave()' for it, {inside}."
        if "using_slave()" in self.why:
            return (
                f"{said} Write outside of the block, {inside}. The decorators "
                "@changes_database and @use_master_database are weaker than the block."
            )
        return (
            f"{said} Mark the view with @changes_database or @use_master_database, "
            f"{inside}; a connection that db.engine has given is opened anew inside "
            "that, or by 'with db.engine.begin():'."
        )


class StaleReadError(ReplicatedError):
    """A connection to a replica was about to read what must not be stale.

    A routed session reads that from the primary by itself; only code that asks for a
    connection has to ask for the right one.

    Attributes:
        table: The table of a model with ``__replicated__ = 'master'``; None where the
            statement's option ``replicated='master'`` asks for the primary.
        statement: The beginning of the statement, without its parameters.
        view: The endpoint of the request, or None outside a request.
    """

    def __init__(self, table: str | None, statement: object, view: str | None) -> None:
        self.table = table
        self.statement = _beginning(statement)
        self.view = view
        super().__init__(table, self.statement, view)

    def __str__(self) -> str:
        where = f"view {self.view!r}" if self.view else "code outside a request"
        if self.table is None:
            return (
                f"{where} asked for the primary, by execution_options(replicated="
                f"'master'), over a connection to a replica: {self.statement}. A "
                "connection cannot change servers: connect inside 'with "
                "using_master():', or use db.session."
            )
        return (
            f"{where} tried to read {self.table!r}, whose model says __replicated__ = "
            f"'master', from a replica: {self.statement}. Connect inside 'with "
            "using_master():', or accept an older state inside 'with using_slave():'."
        )


class UnfitReplicaError(ReplicatedError):
    """A replica must not be used as it is.

    Attributes:
        name: The bind name of the replica.
    """

    def __init__(self, name: str, *more: object) -> None:
        self.name = name
        super().__init__(name, *more)


class ReplicaSilentError(UnfitReplicaError):
    """A replica did not answer in time.

    Attributes:
        seconds: How long it had to answer.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(name, seconds)

    def __str__(self) -> str:
        return f"it has said nothing for {self.seconds:g} s"


class UnansweredError(UnfitReplicaError):
    """Statements got no answer from a replica that is not executing them.

    Attributes:
        statements: How many there were.
        seconds: How long each of them has waited at least.
    """

    def __init__(self, name: str, statements: int, seconds: float) -> None:
        self.statements = statements
        self.seconds = seconds
        super().__init__(name, statements, seconds)

    def __str__(self) -> str:
        return (
            f"no answer has come over {self.statements} of its connections for "
            f"{self.seconds:g} s, though no server works on what they wait for. What "
            "waited there was ended, and reads go on elsewhere where that is safe. "
            "Something between here and there has lost them: a firewall, a balancer, a "
            "pooler, or one of several servers behind the address"
        )


class ExhaustedError(UnfitReplicaError):
    """A replica's connection pool has had no free connection for a long time.

    Attributes:
        connections: How many are in use.
        seconds: For how long at least none was returned.
        bind: The bind whose options allow more, in Python syntax.
    """

    def __init__(self, name: str, connections: int, seconds: float, bind: str) -> None:
        self.connections = connections
        self.seconds = seconds
        self.bind = bind
        super().__init__(name, connections, seconds, bind)

    def __str__(self) -> str:
        return (
            f"all {self.connections} connections that its pool may have are in use, "
            f"and none was given back for {self.seconds:g} s. Find out what its reads "
            "wait for, or who keeps a connection without using it; or let more be open "
            f"at a time (pool_size and max_overflow in {self.bind})"
        )


class MisconfiguredReplicaError(UnfitReplicaError):
    """A replica's bind does not lead to a copy of the primary's database.

    Attributes:
        why: What it leads to.
        remedy: What would be right, with ``{bind}`` for the setting that names it.
    """

    def __init__(self, name: str, why: str, remedy: str = "") -> None:
        self.why = redact(why)
        self.remedy = remedy
        super().__init__(name, self.why, remedy)

    def __str__(self) -> str:
        return self.why


class WrongRoleError(UnfitReplicaError):
    """A replica is a primary: it was promoted, or its URL names the primary.

    Attributes:
        own: Whether it is the bind's own primary, which gets the writes; None if that
            is unknown.
    """

    def __init__(self, name: str, own: bool | None = None) -> None:
        self.own = own
        super().__init__(name, own)

    def __str__(self) -> str:
        return f"{self.name!r} is no replica but a primary{_WHAT_PRIMARY[self.own]}"


_WHAT_PRIMARY = {
    True: (
        ": the one that writes go to. Where every node is a bind that is as it should "
        "be, and others serve reads; else name a standby there. Where one server plays "
        "both parts, set REPLICATED_ROLE_CHECK = False"
    ),
    False: (
        ", and writes go to another one. Make it a standby of that again, or let "
        "writes find it; if it replicates logically, set REPLICATED_ROLE_CHECK = False"
    ),
    None: (
        ": it was promoted, or its URL names the primary. Name a standby there. Where "
        "one server plays both parts, as on a development machine, or where it "
        "replicates logically, set REPLICATED_ROLE_CHECK = False. Where every node of "
        "a cluster is a bind, the primary among them is left out on purpose"
    ),
}


class DivergedReplicaError(UnfitReplicaError):
    """A replica follows another timeline than the primary.

    Attributes:
        why: What shows it, and what to do.
    """

    def __init__(self, name: str, why: str) -> None:
        self.why = why
        super().__init__(name, why)

    def __str__(self) -> str:
        return self.why


class ReplicaLagsError(UnfitReplicaError):
    """A replica is too far behind the primary.

    Attributes:
        lag: Seconds that it is behind at most; None if that is unknown.
        limit: ``REPLICATED_MAX_LAG``, in seconds.
    """

    def __init__(self, name: str, lag: float | None, limit: float) -> None:
        self.lag = lag
        self.limit = limit
        super().__init__(name, lag, limit)

    def __str__(self) -> str:
        if self.lag is None:
            return (
                "its lag is unknown: replication has stopped, or nothing was replayed "
                "since it started"
            )
        return (
            f"it is {self.lag:.1f} s behind the primary, more than "
            f"REPLICATED_MAX_LAG = {self.limit:g}"
        )


MORE_AT_A_TIME = (
    "let more be open at a time (pool_size and max_overflow in the replicas' binds, "
    "max_connections on their servers), or add replicas"
)
"""What helps against load."""


class AllReplicasOutError(ReplicatedError):
    """No replica could serve a read, and a setting keeps it from the primary.

    Attributes:
        causes: For each replica, by bind name, why it could not serve.
        load: Whether all of them are alive, but have no free connection.
        setting: The key of that setting: ``'REPLICATED_FALLBACK'``,
            ``'REPLICATED_LAG_FALLBACK'`` or ``'REPLICATED_FALLBACK_SHARE'``.
        share: What ``REPLICATED_FALLBACK_SHARE`` allows, if that is the setting; else
            None.
    """

    def __init__(
        self,
        causes: Mapping[str, str],
        load: bool = False,
        setting: str = "REPLICATED_FALLBACK",
        share: float | None = None,
    ) -> None:
        self.causes = dict(causes)
        self.load = load
        self.setting = setting
        self.share = share
        super().__init__(self.causes, load, setting, share)

    def __str__(self) -> str:
        primary = f"{self.setting} = 'master' to read from the primary meanwhile"
        if self.share is not None:
            primary = f"a larger share than {self.setting} = {self.share:g}"
        if not self.causes:  # all were removed, or DNS has named none yet
            return f"there is no replica to read from. Add one, or set {primary}."
        listed = "; ".join(f"{name}: {cause}" for name, cause in self.causes.items())
        what, remedy = "out", "Repair one of them"
        if self.load:
            what = "busy"
            remedy = f"{MORE_AT_A_TIME[0].upper()}{MORE_AT_A_TIME[1:]}"
        elif self.setting == "REPLICATED_LAG_FALLBACK":
            what = "behind or out"
            primary += ", or 'least_lagged' to read old rows"
        full = (
            ""
            if self.share is None
            else ", and the primary has had its share of the reads of the last 10 s"
        )
        return f"every replica is {what} ({listed}){full}. {remedy}, or set {primary}."


class PrimaryUnavailableError(ReplicatedError, OperationalError):
    """The primary's address led to a server that cannot be used as a primary.

    Nothing was sent to it except the query for its role. To SQLAlchemy's callers this
    is an ``OperationalError``, like a failed connect.

    Attributes:
        setting: The setting or bind that names the primary, in Python syntax.
        why: What is wrong, and what to do.
        standby: Whether the server is a standby; otherwise it did not answer.
    """

    def __init__(self, setting: str, why: str, *, standby: bool) -> None:
        self.setting = setting
        self.why = why
        self.standby = standby
        OperationalError.__init__(self, None, None, ConnectionError(str(self)))

    def __str__(self) -> str:
        return f"{self.setting}: {self.why}"

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), self.setting, self.why, standby=self.standby), ()
