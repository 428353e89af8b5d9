"""What one application and one request remember.

The state of a request is an attribute of Flask's request object. So nested application
contexts and several sessions of one request share it, and it ends with the request,
however that ends.
"""

from __future__ import annotations

import weakref
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from flask.signals import request_started

from flask_replicated.sql.constructs import Classifier
from flask_replicated.system.forks import ForkAware

from .decider import Decider
from .decision import FALLBACKS, LACKING, PINNED, Decision, Role
from .flask_context import (
    background_app_context,
    endpoint_name,
    is_matched,
    this_app,
    this_context,
    this_request,
)
from .hints import named_table, primary_tables
from .housekeeping import HousekeepingAdvice
from .responses import OVER_WEBSOCKET, Responses
from .session_objects import expire_unmodified
from .unpinned import Unpinned

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from contextlib import AbstractContextManager

    from flask import Flask, Request
    from flask.ctx import RequestContext
    from sqlalchemy import Dialect, Engine, MetaData
    from sqlalchemy.orm import Session

    from balancers import Member
    from flask_replicated.settings.config import Settings
    from flask_replicated.sql.dml import TableWrite

    from .housekeeping import Sent

__all__ = [
    "STATE",
    "AppState",
    "RequestState",
    "current_app_state",
    "current_request_state",
]

STATE = "replicated.state"
"""The key of ``app.extensions`` under which an application's state is kept."""

# An attribute of the request object, since each statement asks for it.
_ATTRIBUTE = "_replicated_state"

_UNDECIDED = Decision(Role.PRIMARY, "nothing is decided yet", "is_read")
_MAX_WRITES = 20  # statements that are remembered of a request


def _none() -> None:
    return None


class AppState(ForkAware):
    """One application's settings, engines and running requests.

    Attributes:
        settings: The application's settings.
        responses: Its responses, which remember clients' writes.
        decider: Decides where its requests read.
        routes: The routed engines by bind key, the default under None. They are the
            engine package's, of which this one knows nothing.
        engines: The engines that Flask-SQLAlchemy has, by bind key; a test may put in
            others.
        metadatas: Returns the MetaData of all its tables; None if they are unknown.
        unpinned: Tells which writes are housekeeping; false if none is.
        advice: Finds endpoints that write in requests that are only to read.
        plain_mappers: Mapped classes on the default bind that prefer no role.
    """

    def __init__(self, settings: Settings, app: Flask | None = None) -> None:
        # The app owns this state, not the reverse. Without an app there are no
        # requests either.
        self._app: Callable[[], Flask | None]
        self._app = weakref.ref(app) if app is not None else _none
        self.settings = settings
        self.responses = Responses(settings, self._app)
        self.decider = Decider(settings, self._app, self.responses)
        self.routes: dict[str | None, Any] = {}
        self.engines: Mapping[str | None, object] = {}
        self.metadatas: Callable[[], Collection[MetaData] | None] = _none
        self._classifiers: dict[str, Classifier] = {}
        self.unpinned = Unpinned(settings.unpinned)
        self.advice = HousekeepingAdvice(self.find_writes, settings.unpinned)
        self.plain_mappers: set[Any] = set()
        self._listens_for_matches = False
        super().__init__()

    # --- the running request ---

    def request_state(self) -> RequestState | None:
        """Return the state of the running request, or None outside one.

        A request of another application, inside which a context of this one was pushed,
        is no request of this one.
        """
        try:
            current = this_request()
        except RuntimeError:
            return None
        state: RequestState | None = getattr(current, _ATTRIBUTE, None)
        if state is None:
            return self.state_in(this_context())
        return state if state.app is self else None

    def state_in(self, context: RequestContext) -> RequestState | None:
        """Return the state of the running request, whose context the caller has."""
        # Not by way of __dict__: to ask for one makes one, and every attribute of
        # the request slower.
        current = context.request
        state: RequestState | None = getattr(current, _ATTRIBUTE, None)
        if state is None and context.app is self._app():
            made = RequestState(self, self.decider.known(current))
            # Another thread of the request may have made one meanwhile, so this is
            # asked last.
            state = getattr(current, _ATTRIBUTE, None)
            if state is None:
                state = made
                setattr(current, _ATTRIBUTE, state)
        return state if state is not None and state.app is self else None

    def role(self) -> Role:
        """Return where a read of the running request goes; outside one, the primary."""
        state = self.request_state()
        return Role.PRIMARY if state is None else state.decision.role

    def latch(self, reason: str) -> None:
        """Send the running request's reads to the primary, if there is one."""
        state = self.request_state()
        if state is not None:
            state.latch(reason)

    def unlatch(self, reason: str) -> None:
        """Undo the running request's latch, if it is for this reason."""
        state = self.request_state()
        if state is not None:
            state.unlatch(reason)

    def only_pinned(self) -> bool:
        """Whether the running request reads the primary for its client's pin alone."""
        state = self.request_state()
        if state is None or state.decision is not PINNED:
            return False
        return not state.reads_primary_anyway()

    def reads_primary_anyway(self, sql: str) -> bool:
        """Whether a read goes to the primary without a pin and with all replicas well.

        Args:
            sql: The read.
        """
        state = self.request_state()
        if state is None or state.reads_primary_anyway():
            return True
        return named_table(primary_tables.pattern(self.metadatas()), sql) is not None

    # --- statements, and what they write ---

    def classifier(self, dialect: str) -> Classifier:
        """Return the classifier of a dialect's statements.

        Args:
            dialect: SQLAlchemy's name for it.
        """
        found = self._classifiers.get(dialect)
        if found is None:
            made = Classifier(self.settings.write_functions, dialect)
            found = self._classifiers.setdefault(dialect, made)
        return found

    def find_writes(self, sql: str, dialect: str) -> tuple[TableWrite, ...] | None:
        """Return what a statement does to which tables; None if that is unknown."""
        return self.classifier(dialect).text.writes(sql)

    def is_unpinned(self, sql: str, dialect: Dialect) -> bool:
        """Whether a statement surely writes nothing but housekeeping."""
        if not self.unpinned:
            return False
        self.unpinned.check_names(self.metadatas, dialect)
        return self.unpinned.covers(self.find_writes(sql, dialect.name), dialect)

    def note_raw_connection(self) -> None:
        """Note that the program has a driver's connection in the running request."""
        state = self.request_state()
        if state is not None:
            state.note_raw_connection()

    def committed(self) -> None:
        """Note that what the running request wrote, if there is one, is visible now."""
        state = self.request_state()
        if state is not None:
            state.committed()
        else:
            self.responses.note_late_write()

    def note_writes(self, writes: Iterable[Sent]) -> None:
        """Note what the running request has committed, if it was only to read."""
        state = self.request_state()
        if state is not None and self._only_reads(this_request()):
            state.writes = (*state.writes, *writes)[:_MAX_WRITES]
            self.advice.active = True

    def response_starts(self) -> None:
        """Look at what the running request has written, as its response starts."""
        if not self.advice.active:
            return
        try:
            current = this_request()
        except RuntimeError:  # a middleware has held the response back
            return
        if current.endpoint is None or not self._only_reads(current):
            return
        state: RequestState | None = getattr(current, _ATTRIBUTE, None)
        if state is None:
            self.advice.note(current.endpoint, ())
        elif state.app is self and state.marked is not Role.PRIMARY:
            self.advice.note(current.endpoint, state.writes)

    def _only_reads(self, current: Request) -> bool:
        settings = self.settings
        return settings.read_on_replica and current.method in settings.readonly_methods

    # --- the application ---

    def listen_for_matches(self) -> None:
        """Let requests that have read early know when their URL is matched."""
        app = self._app()
        if not self._listens_for_matches and app is not None:
            self._listens_for_matches = True
            request_started.connect(self._matched, app)

    def _matched(self, _app: Flask) -> None:
        state = self.request_state()
        if state is not None and state.early:
            state.matched()

    def surroundings(self) -> Callable[[], AbstractContextManager[object]]:
        """Return what gives a background thread the application's context.

        It keeps neither this nor the application alive: the thread ends with them.
        """
        return partial(background_app_context, self._app)

    def begin_anew(self) -> None:
        """Forget, in a child process, the connections that are the parent's."""
        for routed in self.routes.values():
            routed.after_fork()


class RequestState:
    """What one request has done so far.

    Attributes:
        app: The application's state.
        latched: What tied the request to the primary, or None.
        marked: The role that a view decorator asked for, or None.
        decided: The decision that lasts, or None while there is none.
        kept: The replica that serves this request, by the engine of its pool.
        early: Sessions that have read from a replica before the URL was matched.
        writes: What it has committed, if it was only to read.
    """

    __slots__ = (
        "_deciding",
        "_early_decision",
        "_last_write",
        "_reads_primary_anyway",
        "app",
        "decided",
        "early",
        "kept",
        "latched",
        "marked",
        "writes",
    )

    def __init__(self, app: AppState, decided: Decision | None) -> None:
        self.app = app
        self.decided = decided
        self.latched: str | None = None
        self.marked: Role | None = None
        self.kept: dict[Engine, Member[Engine]] = {}
        self.early: WeakSet[Session] | None = None
        self.writes: tuple[Sent, ...] = ()
        self._early_decision: Decision | None = None
        self._last_write: tuple[float | None] | None = None  # the store's answer
        self._deciding: int | None = None  # the thread that does
        self._reads_primary_anyway: bool | None = None

    @property
    def decision(self) -> Decision:
        """Where this request's reads go now, and why; made at the first read.

        One that was made before the URL was matched is made anew afterwards: the view
        was not known.
        """
        return self.decided or self._decide(this_request())

    def _decide(self, current: Request) -> Decision:
        early, thread = not is_matched(current), get_ident()
        decision = self._early_decision if early else self.decided
        while decision is None:
            if self._deciding == thread:
                # REPLICATED_IS_READ reads from the database itself.
                return _UNDECIDED
            asked = self.latched, self.marked
            self._deciding = thread
            try:
                decision = self.app.decider.decide(current, self)
            finally:
                self._deciding = None
            if early:
                self._early_decision = decision
            else:
                self.decided = decision
                if self.early:
                    self._leave_early(decision.role)
            if asked != (self.latched, self.marked):
                # Another thread of this request has written meanwhile.
                decision = None
                self._forget()
        return decision

    def decision_for(self, session: Session) -> Decision:
        """Return where a session's read goes now, and note one that is early."""
        decision = self.decision
        if decision.role is Role.REPLICA and self.decided is None:
            self.note_early(session)
        return decision

    def note_early(self, session: Session) -> None:
        """Note that a session reads from a replica, if the URL is not matched yet."""
        if not is_matched(this_request()):
            if self.early is None:
                self.early = WeakSet()
            self.early.add(session)
            self.app.listen_for_matches()

    def matched(self) -> None:
        """Expire what was read too early, if the view turns out to use the primary.

        The view may change those objects without reading anything first.
        """
        if self.app.settings.is_read is None:
            self.decided or self._decide(this_request())
        else:
            # It may want what before_request functions find out, and is asked by the
            # first read.
            self._leave_early(Role.PRIMARY)

    def _leave_early(self, role: Role) -> None:
        sessions, self.early = self.early, None
        if role is Role.PRIMARY:
            for session in sessions or ():
                expire_unmodified(session)

    def _forget(self) -> None:
        self.decided = self._early_decision = self._reads_primary_anyway = None

    def reads_primary_anyway(self) -> bool:
        """Whether its reads go to the primary without a pin, with all replicas well."""
        decision = self.decision
        if decision.word not in {"pinned", "fallback"}:
            return decision.role is Role.PRIMARY
        found, thread = self._reads_primary_anyway, get_ident()
        if found is None:
            if self._deciding == thread:  # REPLICATED_IS_READ, which is asked below
                return False
            self._deciding = thread
            try:
                role = self.app.decider.role_by_rules(this_request(), self.marked)
            finally:
                self._deciding = None
            found = self._reads_primary_anyway = role is Role.PRIMARY
        return found

    def last_write(self, current: Request) -> float | None:
        """Return when the client last wrote, in seconds of Unix time.

        The store is asked once.
        """
        if self._last_write is None:
            self._last_write = (self.app.responses.store.last_write(current),)
        return self._last_write[0]

    def latch(self, reason: str) -> None:
        """Send this request's reads to the primary from here on."""
        # What the request has not asked for, or may be undone, must not hide what else.
        before = self.latched
        if (
            before is None
            or before is LACKING
            or (before in FALLBACKS and reason not in FALLBACKS)
        ):
            self.latched = reason
            self._forget()

    def unlatch(self, reason: str) -> None:
        """Undo a latch for this reason: the primary has not answered either.

        So nothing newer was seen than the replica shows.
        """
        if self.latched is reason:
            self.latched = None
            self._forget()

    def mark(self, role: Role) -> None:
        """Note what a view decorator asks for."""
        self.marked = role
        self._forget()

    def committed(self) -> None:
        """Note that a write of this request is now visible to others."""
        current = this_request()
        if not is_matched(current):
            self.latch("it has committed a write before its URL was matched")
        responses = self.app.responses
        missed = responses.note_write(self.last_write, current)
        if current.headers.get("Upgrade", "").lower() == "websocket":
            missed = OVER_WEBSOCKET
        responses.warn_missed(missed, endpoint_name(current))

    def note_raw_connection(self) -> None:
        """Note that the program has a driver's connection to the primary.

        It may write and commit with it until the response leaves, unseen by us.
        """
        self.latch("a driver's connection to the primary was asked for")
        self.app.responses.note_write(self.last_write, this_request())


def current_app_state() -> AppState | None:
    """Return the state of the current application, if it has the extension."""
    try:
        app = this_app()
    except RuntimeError:
        return None
    state: AppState | None = app.extensions.get(STATE)
    return state


def current_request_state() -> RequestState | None:
    """Return the state of the running request, if its application has replicas."""
    app = current_app_state()
    return None if app is None else app.request_state()
