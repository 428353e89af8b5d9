"""What one application and one request remember.

A request's state belongs to Flask's request object: nested application
contexts and several sessions of one request share it, and it ends with the
request, however that ends.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from flask import Flask, Request, current_app, has_app_context, has_request_context
from flask.globals import request, request_ctx
from flask.signals import request_started

from flask_replicated.forks import UNTOLD
from flask_replicated.sql.constructs import Classifier

from .decision import LACKING, PINNED, Decision, Role, decide, marked_role
from .housekeeping import HousekeepingAdvice
from .pins import (
    CURRENT,
    NO_RESPONSE,
    OVER_A_SOCKET,
    CookiePins,
    Outgoing,
    still_counts,
)
from .session_objects import expire_unmodified
from .unpinned import Unpinned

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from _typeshed.wsgi import WSGIEnvironment
    from flask.ctx import RequestContext
    from sqlalchemy import Dialect, Engine, MetaData
    from sqlalchemy.orm import Session

    from balancers import Member
    from flask_replicated.engine.engines import ReplicaPoolEngine, RoutedEngine
    from flask_replicated.errors import WriteOnReplicaError
    from flask_replicated.replica.dbapi_connections import Surroundings
    from flask_replicated.settings.config import Settings
    from flask_replicated.sql.dml import TableWrite

    from .housekeeping import Sent
    from .pins import NoPin, PinStore

__all__ = [
    "NO_ENDPOINT",
    "STATE",
    "AppState",
    "RequestState",
    "current_app_state",
    "current_request_state",
    "endpoint_name",
    "this_app",
    "this_context",
    "this_request",
]

logger = logging.getLogger("flask_replicated")

NO_ENDPOINT = "(no endpoint)"
"""What a request that matched no route is called."""

# And one whose URL is not matched yet: sessions and URL converters may read by then.
_NOT_MATCHED = "(before the URL is matched)"

STATE = "replicated.state"
"""The key of ``app.extensions`` under which an application's state is kept."""

# On the request object itself: every statement asks for it, and so it ends with
# the request.
_ATTRIBUTE = "_replicated_state"

# LocalProxy's documented way to the object itself, bound once.
this_app: Callable[[], Flask] = current_app._get_current_object  # type: ignore[attr-defined]  # noqa: SLF001 - the proxy's documented method is not in its type
this_context: Callable[[], RequestContext] = request_ctx._get_current_object  # type: ignore[attr-defined]  # noqa: SLF001 - the same
this_request: Callable[[], Request] = request._get_current_object  # type: ignore[attr-defined]  # noqa: SLF001 - the proxy's documented method is not in its type


def _none() -> None:
    return None


def _is_matched(current: Request) -> bool:
    """Whether it is known which view a request is for, or that there is none."""
    return current.url_rule is not None or current.routing_exception is not None


def endpoint_name(current: Request) -> str:
    """Return the endpoint of a request, or what stands for it."""
    return current.endpoint or (NO_ENDPOINT if _is_matched(current) else _NOT_MATCHED)


class AppState:
    """One application's settings, engines and running requests.

    Attributes:
        settings: The application's settings.
        pins: Where clients' writes are remembered.
        routes: The routed engines by bind key, the default under None.
        engines: What Flask-SQLAlchemy has by bind key; a test may put in others.
        metadatas: Returns the MetaData of all its tables; None where nobody can tell.
        unpinned: Tells which writes leave no trace; false if none does.
        habits: Looks at endpoints that write though they are only to read.
        plain_mappers: Mapped classes on the default bind that prefer no role.
        writers: How often a replica has refused a write, by endpoint.
        process: The id of the process whose connections the engines have.
        outgoing_key: Where its responses are in the WSGI environment.
    """

    def __init__(self, settings: Settings, app: Flask | None = None) -> None:
        # The app owns this state, not the reverse. Without one there are no
        # requests either.
        self._app = weakref.ref(app) if app is not None else _none
        self.settings = settings
        self.pins: PinStore = CookiePins(settings.pin_cookie, settings.pin_seconds)
        self.routes: dict[str | None, RoutedEngine] = {}
        self.engines: Mapping[str | None, object] = {}
        self.metadatas: Callable[[], Collection[MetaData] | None] = _none
        self._classifiers: dict[str, Classifier] = {}
        self.unpinned = Unpinned(settings.unpinned)
        self.habits = HousekeepingAdvice(self.find_writes, settings.unpinned)
        self.plain_mappers: set[Any] = set()
        self.writers: Counter[str] = Counter()
        self._decisions: dict[tuple[str, str], Decision] = {}
        # Its own: one environment may come to several applications, one inside another.
        self.outgoing_key = f"flask_replicated.outgoing.{id(self)}"
        self._not_told: set[str] = set()
        self.process = os.getpid()
        self._renewing = Lock()
        self._heeds_matches = False
        _states.add(self)

    def request_state(self) -> RequestState | None:
        """Return the state of the running request, or None outside one.

        A request of another application, inside which this one's context was
        pushed, is no request of this one.
        """
        try:  # nearly always there is one, and to ask first is dearer
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
        # the request dearer.
        current = context.request
        state: RequestState | None = getattr(current, _ATTRIBUTE, None)
        if state is None and context.app is self._app():
            made = RequestState(self, self.known(current))
            # Another thread of the request may have made one meanwhile: so this is
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

    def unlatch(self) -> None:
        """Undo the running request's latch for what its replica lacks, if any."""
        state = self.request_state()
        if state is not None:
            state.unlatch()

    def given_out(self) -> None:
        """Note that the running request has a driver's connection in its hands."""
        state = self.request_state()
        if state is not None:
            state.given_out()

    def heed_matches(self) -> None:
        """Hear from now on of each request that begins, once its URL is matched."""
        app = self._app()
        if not self._heeds_matches and app is not None:
            self._heeds_matches = True
            request_started.connect(self._matched, app)

    def _matched(self, _app: Flask) -> None:
        state = self.request_state()
        if state is not None and state.early:
            state.matched()

    def known(self, current: Request) -> Decision | None:
        """Return the decision on a request that has done nothing yet, if it is known.

        What the view and the method say never changes.
        """
        rule = current.url_rule  # to ask it for the endpoint's name spares a call
        if rule is None:
            return None
        decision = self._decisions.get((rule.endpoint, current.method))
        if decision is None or not decision.by_method:
            return decision
        if type(self.pins) is not CookiePins:
            return None  # another store may read from the database, and so ask this
        return PINNED if self._pinned(self.pins.last_write, current) else decision

    def decide(self, state: RequestState, current: Request) -> Decision:
        """Decide where the reads of the running request go."""
        if (
            state.latched is not None
            or state.marked is not None
            or self.settings.is_read is not None
        ):
            return self._decide(state, current)
        known, rule = self._decisions, current.url_rule
        decision = None
        if rule is not None:
            decision = known.get((rule.endpoint, current.method))
        if decision is None:
            decision = self._decide(state, current, pinned=False)
            # So the keys are bounded: a rule that lists its methods takes no other.
            if rule is not None and rule.methods is not None:
                known[rule.endpoint, current.method] = decision
        pinned = decision.by_method and self._pinned(state.last_write, current)
        return PINNED if pinned else decision

    def _decide(
        self, state: RequestState, current: Request, *, pinned: bool | None = None
    ) -> Decision:
        app = self._app()
        mark = state.marked
        if mark is None and app is not None and current.endpoint is not None:
            mark = marked_role(app.view_functions.get(current.endpoint), current.method)
        explicit = state.latched is not None or mark is not None
        if pinned is None:
            pinned = not explicit and self._pinned(state.last_write, current)
        decided = partial(
            decide,
            latched=state.latched,
            mark=mark,
            known_writer=self.settings.learn_writers and self.in_known_writer(),
            pinned=pinned,
            method=current.method,
            readonly_methods=self.settings.readonly_methods,
            read_on_replica=self.settings.read_on_replica,
        )
        decision = decided()
        if decision.by_method and self.settings.is_read is not None:
            decision = decided(is_read=self.settings.is_read(current))
        return decision

    def classifier(self, dialect: str) -> Classifier:
        """Return what tells what a statement of a dialect does.

        Args:
            dialect: SQLAlchemy's name for it.
        """
        found = self._classifiers.get(dialect)
        if found is None:
            made = Classifier(self.settings.write_functions, dialect)
            found = self._classifiers.setdefault(dialect, made)
        return found

    def find_writes(self, sql: str, dialect: str) -> tuple[TableWrite, ...] | None:
        """Return what a statement does to which tables; None where that is not sure."""
        return self.classifier(dialect).text.writes(sql)

    def is_unpinned(self, sql: str, dialect: Dialect) -> bool:
        """Whether a statement surely writes nothing but housekeeping."""
        return bool(self.unpinned) and self.unpinned.covers(
            self.find_writes(sql, dialect.name), dialect
        )

    def only_pinned(self) -> bool:
        """Whether only its client's pin has the running request read the primary."""
        state = self.request_state()
        if state is None or state.decision is not PINNED:
            return False
        otherwise = self._decide(state, this_request(), pinned=False)
        return otherwise.role is Role.REPLICA

    def learn_writer(self, refusal: WriteOnReplicaError) -> None:
        """Remember an endpoint whose write only a replica's server recognised."""
        endpoint = refusal.view
        if endpoint is None:
            return
        if endpoint not in self.writers:
            learnt = self.settings.learn_writers
            logger.warning(
                "%s Its requests %s.",
                refusal,
                "start on the primary from now on"
                if learnt
                else "fail, or send it twice",
            )
        self.writers[endpoint] += 1
        # Another one: what is being decided at this moment is not for it.
        self._decisions = {}

    def in_known_writer(self) -> bool:
        """Whether the running request's endpoint writes in ways not recognised."""
        writers = self.writers
        return (
            bool(writers)
            and has_request_context()
            and endpoint_name(this_request()) in writers
        )

    def _pinned(
        self, last_write: Callable[[Request], float | None], current: Request
    ) -> bool:
        seconds = self.settings.pin_seconds
        if not seconds:
            return False
        outgoing: Outgoing | None = current.environ.get(self.outgoing_key)
        return (
            outgoing is not None and outgoing.wrote_within(seconds)
        ) or still_counts(last_write(current), seconds)

    def outgoing(self, environ: WSGIEnvironment) -> Outgoing:
        """Return the response that a request's server waits for, or what stands for it.

        Args:
            environ: The request's environment, which keeps it from now on.
        """
        found: Outgoing | None = environ.get(self.outgoing_key)
        if found is None:
            found = CURRENT.get()
            if found is None or found.app is not self or found.lost is not None:
                found = Outgoing(self, NO_RESPONSE)
            environ[self.outgoing_key] = found
        return found

    def committed(self) -> None:
        """Note that what the running request wrote, if there is one, is visible now."""
        state = self.request_state()
        if state is not None:
            state.committed()
            return
        # When the context of its application ends, the request is over already.
        outgoing = CURRENT.get()
        if outgoing is not None and outgoing.app is self:
            outgoing.note()
            self.note_lost(outgoing.lost, "(after the request)")

    def note_writes(self, writes: Iterable[Sent]) -> None:
        """Note what the running request has committed, if it was only to read."""
        state = self.request_state()
        if state is not None and self._only_reads(this_request()):
            state.writes = (*state.writes, *writes)[:_FEW]
            self.habits.active = True

    def answered(self) -> None:
        """Note that the response of the running request leaves."""
        try:
            current = this_request()
        except RuntimeError:  # a middleware has held it back
            return
        if current.endpoint is None or not self._only_reads(current):
            return
        state: RequestState | None = getattr(current, _ATTRIBUTE, None)
        if state is None:
            self.habits.note(current.endpoint, ())
        elif state.app is self and state.marked is not Role.PRIMARY:
            self.habits.note(current.endpoint, state.writes)

    def _only_reads(self, current: Request) -> bool:
        settings = self.settings
        return settings.read_on_replica and current.method in settings.readonly_methods

    def note_lost(self, lost: NoPin | None, endpoint: str) -> None:
        """Say once for an endpoint that no response tells its client of a write.

        Args:
            lost: Why; None if one does.
            endpoint: The endpoint.
        """
        told = self._not_told
        if lost is None or not self.settings.pin_seconds:
            return
        if endpoint in told or len(told) >= _MANY:
            return
        told.add(endpoint)
        logger.warning(
            "endpoint %r committed a write %s: its client is not pinned to the primary "
            "and may not see that write. %s",
            endpoint,
            lost.why,
            lost.remedy,
        )

    def context(self) -> AbstractContextManager[object]:
        """Return a block in which the application is the current one."""
        app = self._app()
        if app is None or (has_app_context() and this_app() is app):
            return nullcontext()
        return app.app_context()

    def surroundings(self) -> Surroundings:
        """Return what gives a background thread the application's context.

        It keeps neither this nor the application alive: the thread ends with them.
        """
        return partial(_in_context, self._app)

    def after_fork(self) -> None:
        """Forget, in a child process, the connections that are the parent's."""
        for routed in self.routes.values():
            routed.after_fork()
        self._renewing = Lock()
        # Last: other threads wait until it is so.
        self.process = os.getpid()

    def notice_fork(self) -> None:
        """Do what the hook below would have done, in a child that was not told."""
        with self._renewing:
            if self.process != os.getpid():  # unless another thread has done it
                logger.warning(UNTOLD)
                _after_fork()


@contextmanager
def _in_context(find: Callable[[], Flask | None]) -> Iterator[None]:
    app = find()
    if app is None:
        yield
        return
    context = app.app_context()
    context.push()
    try:
        yield
    finally:
        try:
            context.pop()
        except Exception:
            # It says nothing of the server.
            logger.debug("a teardown function failed in the background", exc_info=True)


# For the hook below, which can never be taken back: one for all applications,
# and it keeps none of them alive.
_states: WeakSet[AppState] = WeakSet()


def _after_fork() -> None:
    for state in list(_states):
        state.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


_UNDECIDED = Decision(Role.PRIMARY, "nothing is decided yet", "is_read")
_MANY = 1000  # endpoints; a program may make some as it runs
_FEW = 20  # statements that are remembered of a request


class RequestState:
    """What one request has done so far.

    Attributes:
        app: The application's state.
        latched: What tied the request to the primary, or None.
        marked: The role that a view decorator asked for, or None.
        decided: The role of ``decision``, or None while there is none that lasts.
        kept: The replica that serves this request, for each pool.
        early: Sessions that have read from a replica before the URL was matched.
        writes: What it has committed, if it was only to read.
    """

    __slots__ = (
        "_asked",
        "_deciding",
        "_decision",
        "_early",
        "app",
        "decided",
        "early",
        "kept",
        "latched",
        "marked",
        "writes",
    )

    def __init__(self, app: AppState, known: Decision | None) -> None:
        self.app = app
        self._decision = known
        self._early: Decision | None = None
        self._asked: tuple[float | None] | None = None
        self._deciding: int | None = None
        self.decided = None if known is None else known.role
        self.latched: str | None = None
        self.marked: Role | None = None
        self.kept: dict[ReplicaPoolEngine, Member[Engine]] = {}
        self.early: WeakSet[Session] | None = None
        self.writes: tuple[Sent, ...] = ()

    @property
    def decision(self) -> Decision:
        """Where this request's reads go now, and why; made once, lazily.

        And once more where it was made before the URL was matched: what is known
        only then, the view above all, was not asked.
        """
        return self._decision or self._decide(this_request())

    def _decide(self, current: Request) -> Decision:
        early, thread = not _is_matched(current), get_ident()
        decision = self._early if early else self._decision
        while decision is None:
            if self._deciding == thread:
                # REPLICATED_IS_READ reads from the database itself.
                return _UNDECIDED
            asked = self.latched, self.marked
            self._deciding = thread
            try:
                decision = self.app.decide(self, current)
            finally:
                self._deciding = None
            if early:
                self._early = decision
            else:
                self._decision, self.decided = decision, decision.role
                if self.early:
                    self._leave_early(decision.role)
            if asked != (self.latched, self.marked):
                # Another thread of this request has written meanwhile.
                decision = None
                self._forget()
        return decision

    def role_for(self, session: Session) -> Role:
        """Return where a session's read goes now, and note one that is early."""
        role = self.decision.role
        if role is Role.REPLICA and self.decided is None:
            self.note_early(session)
        return role

    def note_early(self, session: Session) -> None:
        """Note that a session reads from a replica, if the URL is not matched yet."""
        if not _is_matched(this_request()):
            if self.early is None:
                self.early = WeakSet()
            self.early.add(session)
            self.app.heed_matches()

    def matched(self) -> None:
        """Let a view for the primary find nothing that a replica gave before the match.

        It may change what it finds without reading anything first.
        """
        if self.app.settings.is_read is None:
            self._decision or self._decide(this_request())
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
        self._decision = self._early = self.decided = None

    def last_write(self, current: Request) -> float | None:
        """Return when the client last wrote, in seconds of Unix time; asked once."""
        if self._asked is None:
            self._asked = (self.app.pins.last_write(current),)
        return self._asked[0]

    def latch(self, reason: str) -> None:
        """Send this request's reads to the primary from here on."""
        # What may be undone must not hide what may not.
        if self.latched is None or self.latched is LACKING:
            self.latched = reason
            self._forget()

    def unlatch(self) -> None:
        """Undo a latch for what a replica lacks: the primary has not answered either.

        So nothing newer was seen than the replica shows.
        """
        if self.latched is LACKING:
            self.latched = None
            self._forget()

    def mark(self, role: Role) -> None:
        """Note what a view decorator asks for."""
        self.marked = role
        self._forget()

    def committed(self) -> None:
        """Note that a write of this request is now visible to others."""
        current = this_request()
        if not _is_matched(current):
            self.latch("it has committed a write before its URL was matched")
        outgoing = self.app.outgoing(current.environ)
        outgoing.note(self)
        over_a_socket = current.headers.get("Upgrade", "").lower() == "websocket"
        lost = OVER_A_SOCKET if over_a_socket else outgoing.lost
        self.app.note_lost(lost, endpoint_name(current))

    def given_out(self) -> None:
        """Note that a driver's connection to the primary is in the program's hands.

        It may write and commit with it until the response leaves, and nobody is told.
        """
        self.latch("a driver's connection to the primary was asked for")
        self.app.outgoing(this_request().environ).note(self)


def current_app_state() -> AppState | None:
    """Return the state of the current application, if it has the extension."""
    try:  # nearly always there is one, and to ask first is dearer
        app = this_app()
    except RuntimeError:
        return None
    state: AppState | None = app.extensions.get(STATE)
    return state


def current_request_state() -> RequestState | None:
    """Return the state of the running request, if its application has replicas."""
    app = current_app_state()
    return None if app is None else app.request_state()
