"""Facades: objects that look like an engine, or a part of one, over a real one."""

from __future__ import annotations

import weakref
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from flask_replicated.errors import WriteOnReplicaError
from flask_replicated.routing.flask_context import running_endpoint
from flask_replicated.signals import write_refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

    from balancers import Member
    from flask_replicated.consistency.demands import Rules
    from flask_replicated.consistency.tokens import Token
    from flask_replicated.replica.primary_status import PrimaryStatus
    from flask_replicated.routing.announcer import Announcer
    from flask_replicated.routing.counts import ReadCounts
    from flask_replicated.routing.incidents import Incidents
    from flask_replicated.routing.snapshots import ReplicaPool
    from flask_replicated.routing.state import AppState
    from flask_replicated.sql.constructs import Classifier, Kind

    from .background import FleetLike, MonitorLike, OutagesLike
    from .known import Known
    from .lacking import LackingLog

__all__ = [
    "Alias",
    "EngineFacade",
    "ObjectFacade",
    "ReplicasFacade",
    "RoutedFacade",
    "ServerFacade",
    "SubclassFacade",
    "shown_by",
]


def shown_by(source: str, name: str) -> Any:
    """Return a property that reads from elsewhere and sets on the real engine.

    Args:
        source: The facade's attribute from which it is read.
        name: Its name there, and on the real engine.
    """

    def put(self: EngineFacade, value: Any) -> None:
        setattr(self.real, name, value)

    return property(attrgetter(f"{source}.{name}"), put)


class EngineFacade(Engine):
    """An engine over a real one.

    All that an engine keeps is the real engine's: a listener that is added here is
    called for that engine's connections, and an option that is set here holds for them.
    """

    def __init__(self, real: Engine) -> None:
        # Not Engine's own: there is nothing to keep.
        self.real = real

    # dispose() gives an engine another pool, so each is looked up each time.
    pool = shown_by("real", "pool")
    dialect = shown_by("real", "dialect")
    url = shown_by("real", "url")
    hide_parameters = shown_by("real", "hide_parameters")
    dispatch = shown_by("real", "dispatch")
    echo = shown_by("real", "echo")
    logger = shown_by("real", "logger")
    logging_name = shown_by("real", "logging_name")
    _has_events = shown_by("real", "_has_events")

    def __getattr__(self, name: str) -> Any:
        # What only the constructor of an engine sets, such as its cache of compiled
        # statements.
        if "real" not in vars(self):  # it is being copied
            raise AttributeError(name)
        return getattr(self.real, name)

    def get_execution_options(self) -> Any:
        """Return the real engine's execution options."""
        return self.real.get_execution_options()

    def update_execution_options(self, **options: Any) -> None:
        """Change the real engine's execution options."""
        self.real.update_execution_options(**options)

    def execution_options(self, **options: Any) -> Engine:  # type: ignore[override]  # an engine all the same
        """Return the real engine with execution options of its own."""
        return self.real.execution_options(**options)

    def dispose(self, close: bool = True) -> None:
        """Dispose of the real engine's connection pool."""
        self.real.dispose(close)


# What the engines of one bind, their connections and listeners know of each other,
# without importing each other.


class RoutedFacade(EngineFacade):
    """A routed engine.

    Attributes:
        app: The application's state.
        bind: Its bind, as tokens name it.
        classifier: Tells what a statement does.
        classify: The classifier's own ``kind``, at hand for each statement.
        reads: Counts how many reads each server got.
        incidents: Counts what went wrong.
        announcer: Tells the application what happens to this bind.
        monitor: What probes the replicas in the background.
        fleet: Takes in new replicas and lets others go.
        status: What is known of the primary.
        outages: What knows of the replicas' outages, and logs them.
        known: What is known of the log positions of its servers.
        rules: What the settings say of what its reads must be shown.
        primary: The primary, as a session uses it for writes.
        replicas: The replicas, as a session uses them for reads.
    """

    app: AppState
    bind: int
    classifier: Classifier
    classify: Callable[[Any], Kind]
    reads: ReadCounts
    incidents: Incidents
    announcer: Announcer
    monitor: MonitorLike
    fleet: FleetLike
    status: PrimaryStatus
    outages: OutagesLike
    known: Known
    rules: Rules
    primary: ServerFacade
    replicas: ReplicasFacade

    def engines(self) -> list[Engine]:
        """Return the engines behind it, the primary's first."""
        members = self.replicas.replica_pool.members
        return [self.real, *(member.target for member in members)]

    def refusal(
        self, statement: object, why: str, cause: str, replica: str | None = None
    ) -> WriteOnReplicaError:
        """Return the error for a write that is kept from a replica; count and tell it.

        Args:
            statement: The write.
            why: What refuses it.
            cause: The same in one word, as the signal has it.
            replica: The replica, if it is known.
        """
        endpoint = running_endpoint()
        self.incidents.refused(endpoint)
        self.announcer.send(
            write_refused,
            replica=replica,
            cause=cause,
            line=f"a write in {endpoint or '(no request)'} is kept from a replica",
            endpoint=endpoint,
        )
        return WriteOnReplicaError(statement, endpoint, why)

    def refuse(self, statement: object, why: str, cause: str) -> None:
        """Refuse a write in code that has asked for a replica.

        Raises:
            WriteOnReplicaError: Always; but not where it is only observed.
        """
        raise self.refusal(statement, why, cause)

    def wake(self) -> None:
        """Begin what goes on in the background, in a forked child all of it anew."""
        raise NotImplementedError

    def trial(self) -> AbstractContextManager[object]:
        """Return a block in which to connect to the primary; a trial, if it is out."""
        raise NotImplementedError

    def untold(self) -> Token:
        """Return a token for what was written by now, whose position is not known."""
        raise NotImplementedError

    def token_of(self, connection: Connection) -> Token:
        """Return a token for what a connection to the primary has just committed."""
        raise NotImplementedError


class ServerFacade(EngineFacade):
    """The primary, or the replicas, of a routed engine.

    Attributes:
        routed: The routed engine.
    """

    routed: RoutedFacade


class ReplicasFacade(ServerFacade):
    """The replicas of a routed engine.

    Attributes:
        replica_pool: The replicas.
        reads: Counts how many reads each server got.
        lacking: Tells of replicas that go on lacking what reads name.
    """

    replica_pool: ReplicaPool
    reads: ReadCounts
    lacking: LackingLog

    @property
    def primary_is_out(self) -> bool:
        """Whether it is known that the primary does not answer now."""
        raise NotImplementedError

    def note_primary_failure(self) -> None:
        """Note that the primary could not be reached in place of a replica."""
        raise NotImplementedError

    def release(self, member: Member[Engine]) -> None:
        """Let the running request go on with another replica."""
        raise NotImplementedError


class Alias(EngineFacade):
    """A real engine under the name of the facade that a caller holds.

    A plain Session keeps its connections by their engines, and looks for them
    by its bind. For its dictionary the two are equal; everything else is real.
    """

    def __init__(self, real: Engine, facade: Engine) -> None:
        self._facade = weakref.ref(facade)
        self._hash = hash(facade)
        super().__init__(real)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._facade()

    def __hash__(self) -> int:
        return self._hash


class ObjectFacade:
    """Passes for another object, except for some attributes of its own.

    Args:
        find: Returns the other object; called each time.
        own: The attributes of its own.
    """

    def __init__(self, find: Callable[[], Any], **own: Any) -> None:
        vars(self).update(own, _find=find)

    if not TYPE_CHECKING:  # which would take each of these for an object of its own

        @property
        def __class__(self) -> Any:
            """The class that isinstance() sees."""
            return type(self._find())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._find(), name, value)


class SubclassFacade:
    """Makes a twin that shares an object's attributes, except for some of its own.

    The twin is an instance of a subclass, so that code which looks at ``type()`` or
    at a class's attributes finds what it looks for.

    Args:
        find: Returns the object, which may be another one later.
        own: The attributes of the twin's own.
    """

    def __init__(self, find: Callable[[], Any], **own: Any) -> None:
        self._find = find
        self._own: dict[str, Any] = {name: _always(one) for name, one in own.items()}
        self._own["__eq__"] = lambda twin, other: other is twin or other is find()
        self._own["__hash__"] = lambda _: hash(find())
        self._twin: Any = None

    def get(self) -> Any:
        """Return the twin, always the same one."""
        original = self._find()
        kind, twin = type(original), self._twin
        if twin is None or type(twin).__base__ is not kind:
            own = {**self._own, "__module__": kind.__module__}
            made = type(kind.__name__, (kind,), own)
            if twin is None:
                twin = self._twin = object.__new__(made)
            else:
                twin.__class__ = made
        if vars(twin) is not vars(original):
            twin.__dict__ = vars(original)
        return twin


def _always(value: object) -> property:
    return property(lambda _: value)
