"""What one application remembers, and what is asked of its running request."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from flask.signals import request_started

from flask_replicated._private import current_request_context
from flask_replicated.consistency.demands import (
    UnreadableTokens,
    demand_of,
    tokens_given,
)
from flask_replicated.consistency.guarantees import (
    current_guarantees,
    innermost_guarantee,
    open_token_blocks,
)
from flask_replicated.consistency.tokens import NOTHING, Mark, Token, encode
from flask_replicated.sql.constructs import Classifier
from flask_replicated.system.forks import ForkAware
from flask_replicated.system.threads import EachSecond

from .decider import Decider
from .decision import BEHIND, PINNED, Role
from .explanations import Explanation, add_server_timing, explained
from .fallback_share import FallbackShare
from .flask_context import (
    background_app_context,
    this_app,
    this_request,
)
from .hints import named_table, primary_tables
from .housekeeping import HousekeepingAdvice
from .request_state import RequestState
from .responses import Responses
from .unpinned import Unpinned

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from contextlib import AbstractContextManager

    from flask import Flask, Request
    from flask.ctx import RequestContext
    from sqlalchemy import Dialect, Engine, MetaData

    from flask_replicated.consistency.demands import Demand, Rules
    from flask_replicated.settings.config import Settings
    from flask_replicated.sql.dml import TableWrite

    from .housekeeping import Sent
    from .reports import Report
    from .responses import AsksPosition
    from .snapshots import ReplicaPoolSnapshot

__all__ = [
    "STATE",
    "AppState",
    "RequestState",
    "current_app_state",
    "current_request_state",
    "state_of",
]

STATE = "replicated.state"
"""The key of ``app.extensions`` under which an application's state is kept."""

# An attribute of the request object, since each statement asks for it.
_ATTRIBUTE = "_replicated_state"

_MAX_WRITES = 20  # statements that are remembered of a request


def _none() -> None:
    return None


class TestKitLike(Protocol):
    """What tests have put in place; nothing of it is imported in production."""

    def routed_for(self, bind: object) -> Any:
        """Return the routed engine that an engine or connection of a test stands for.

        None if there is none, and what the test has put in is to be used as it is.
        """

    def take_in(self, routed: Any, name: str, engine: Engine) -> None:
        """Do for a replica that is being added what was done for the others."""


class ObservationLike(Protocol):
    """What is counted where reads are only observed; see ``observation.py``.

    Attributes:
        active: Whether it wants to know of each response.
    """

    active: bool

    def response_starts(self, current: Request, state: RequestState | None) -> None:
        """Note a request, as its response starts."""

    def report(self) -> Report:
        """Return what was seen so far."""

    def renew(self) -> None:
        """Start at zero, as in a forked child."""

    def clear(self) -> None:
        """Start at zero; what is told from now on counts."""


class AppState(ForkAware):
    """One application's settings, engines and running requests.

    Attributes:
        find_app: Returns the application; None if there is none, or no more.
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
        fallback_share: Bounds how many of its reads fall on the primary.
        each_second: What is called about every second, while replicas are monitored.
        plain_mappers: Mapped classes on the default bind that prefer no role.
        monotonic: Whether what each client reads counts for its later reads.
        kit: What tests use, once one has; nothing else sets it.
        observation: What is counted where reads are only observed; else None.
    """

    kit: TestKitLike | None = None
    observation: ObservationLike | None = None

    def __init__(self, settings: Settings, app: Flask | None = None) -> None:
        # The app owns this state, not the reverse. Without an app there are no
        # requests either.
        self.find_app: Callable[[], Flask | None]
        self.find_app = weakref.ref(app) if app is not None else _none
        self.settings = settings
        self.responses = Responses(
            settings, self.find_app, self._time_seconds, self.complete
        )
        self.decider = Decider(settings, self.find_app)
        self.routes: dict[str | None, Any] = {}
        self.engines: Mapping[str | None, object] = {}
        self.metadatas: Callable[[], Collection[MetaData] | None] = _none
        self._classifiers: dict[str, Classifier] = {}
        self.unpinned = Unpinned(settings.unpinned)
        self.advice = HousekeepingAdvice(self.find_writes, settings.unpinned)
        self.fallback_share = FallbackShare(settings.fallback_share)
        self.each_second = EachSecond(self.fallback_share.sample)
        self.plain_mappers: set[Any] = set()
        self.monotonic = settings.guarantee == "monotonic"
        self._unreadable = UnreadableTokens()
        self._listens_for_matches = False
        super().__init__()

    def _time_seconds(self) -> float:
        """Return how long the time of a write counts, at most, for any bind."""
        routed = self.routes.values()
        return max((one.rules.time_seconds for one in routed), default=0.0)

    # --- the running request ---

    def request_state(self) -> RequestState | None:
        """Return the state of the running request, or None outside one.

        A request of another application, inside which a context of this one was pushed,
        is no request of this one.
        """
        try:
            context = current_request_context()
            current = context.request
        except (LookupError, RuntimeError):
            return None
        state: RequestState | None = getattr(current, _ATTRIBUTE, None)
        if state is None:
            return self.state_in(context)
        return state if state.app is self else None

    def state_in(self, context: RequestContext) -> RequestState | None:
        """Return the state of the running request, whose context the caller has."""
        # Not by way of __dict__: to ask for one makes one, and every attribute of
        # the request slower.
        current = context.request
        state: RequestState | None = getattr(current, _ATTRIBUTE, None)
        app = self.find_app()
        if state is None and app is not None and context.app is app:
            made = RequestState(self, None)
            made.ask_client(current, app)
            if not made.may_be_pinned:
                made.decided = self.decider.known(current)
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
        """Whether the running request reads the primary for what it must see alone."""
        state = self.request_state()
        if state is None or not (state.decision is PINNED or state.latched is BEHIND):
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
        return self.names_primary_table(sql)

    def names_primary_table(self, sql: str) -> bool:
        """Whether a statement names the table of a model that asks for the primary."""
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

    def note_raw_connection(self, token: Token) -> None:
        """Note that the program has a driver's connection in the running request.

        Args:
            token: Demands what was written by now.
        """
        state = self.request_state()
        if state is not None:
            state.note_raw_connection(token)

    def committed(self, token: Token) -> None:
        """Note that what the running request wrote, if there is one, is visible now.

        Args:
            token: Where, as far as that is known.
        """
        for block in open_token_blocks():  # each one has it inside
            block.written = block.written.merged(token)
        state = self.request_state()
        if state is not None:
            state.committed(token)
        elif self.pins():
            self.responses.note_late_write(token)

    def pins(self) -> bool:
        """Whether a write pins its client here."""
        if current_guarantees.get() is None:  # no block is open
            return self.settings.guarantee != "none"
        return (innermost_guarantee() or self.settings.guarantee) != "none"

    def demand(
        self,
        bind: int,
        rules: Rules,
        state: RequestState | None,
        carried: Token | None,
    ) -> Demand | None:
        """Return what a read of one bind must be shown now; None if nothing.

        Args:
            bind: The bind's id.
            rules: What the settings say of the bind.
            state: Of the running request, or None.
            carried: What its client carries, if that is all; None to find out.
        """
        lost = False
        if carried is None:
            carried = NOTHING
            if state is not None and self.pins():  # or the store need not be asked
                carried, lost = state.carried()
        return demand_of(
            bind, carried, rules, self.keys, lost=lost, unreadable=self._unreadable
        )

    def ignore(self, bind: int, state: RequestState | None) -> bool:
        """Note that what must be shown of a bind cannot be true.

        Args:
            bind: The bind's id.
            state: Of the running request, or None.

        Returns:
            Whether less is to be shown now. If not, the primary is to serve.
        """
        if state is None or not state.carries(bind):
            self._unreadable.warn()
            return False
        ignored = self.responses.tokens.may_ignore()
        if ignored:
            state.ignore(bind)
        return ignored

    def keeps_tokens(self) -> bool:
        """Whether the position of a write is to be asked for at once."""
        return self.pins() or bool(open_token_blocks())

    def note_primary_read(self, bind: int, connection: AsksPosition) -> None:
        """Note that the running request reads from the primary, where that counts.

        Args:
            bind: The bind's id.
            connection: The connection.
        """
        if not (self.monotonic or current_guarantees.get() is not None):
            return
        state = self.request_state()
        guarantee = innermost_guarantee() or self.settings.guarantee
        if state is not None and guarantee == "monotonic":
            state.note_primary_read(bind, connection)

    def complete(self, token: Token, since: float) -> Token:
        """Return a token with the highest positions that are known by now.

        So answers of this process that cross on their way lose nothing.

        Args:
            token: The token.
            since: Only what was committed since then counts, by the monotonic clock.
        """
        marks = dict(token)
        for routed in self.routes.values():
            mark = marks.get(routed.bind)
            highest = routed.known.highest_since(since)
            if mark is not None and mark.position is not None and highest is not None:
                marks[routed.bind] = mark.merged(Mark(highest, mark.at))
        return Token(marks)

    def token(self) -> str:
        """Return what is written here, and what was given, as a token's text."""
        found, _ = tokens_given(self.keys)
        state = self.request_state()
        if state is not None:
            found = found.merged(state.carried()[0]).merged(state.written)
        marks = {bind: mark._replace(replica=0) for bind, mark in found.items()}
        for routed in self.routes.values():
            mark = marks.get(routed.bind)
            if mark is not None and mark.untold:
                # Its position was not asked for, as no client was to be pinned.
                marks[routed.bind] = routed.told(mark)
        return encode(Token(marks), self.keys())

    def keys(self) -> list[str | bytes]:
        """Return the secret keys; none without an application."""
        app = self.find_app()
        return [] if app is None else self.responses.tokens.keys(app)

    def note_writes(self, writes: Iterable[Sent]) -> None:
        """Note what the running request has committed, if it was only to read."""
        state = self.request_state()
        if state is not None and self._only_reads(this_request()):
            state.writes = (*state.writes, *writes)[:_MAX_WRITES]
            self.advice.active = True

    def response_starts(self) -> None:
        """Look at what the running request has written, as its response starts."""
        try:
            current = this_request()
        except RuntimeError:  # a middleware has held the response back
            return
        state: RequestState | None = getattr(current, _ATTRIBUTE, None)
        own = state if state is not None and state.app is self else None
        if self.observation is not None:
            self.observation.response_starts(current, own)
        if current.endpoint is None or not self._only_reads(current):
            return
        if state is None:
            self.advice.note(current.endpoint, ())
        elif own is not None and own.marked is not Role.PRIMARY:
            self.advice.note(current.endpoint, own.writes)

    def _only_reads(self, current: Request) -> bool:
        settings = self.settings
        allowed = self.decider.read_on_replica
        return allowed and current.method in settings.readonly_methods

    def explanation(self) -> list[Explanation]:
        """Return where the running request has read, and why, the oldest read first."""
        state = self.request_state()
        return [] if state is None else [explained(one) for one in state.reads]

    def add_reads(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the headers of the running request's response, and where it has read.

        Args:
            headers: The headers of the response.
        """
        state = self.request_state()  # None if a middleware has held it back
        if state is None or not state.reads:
            return headers
        return add_server_timing(headers, state.reads)

    # --- the application ---

    def listen_for_matches(self) -> None:
        """Let requests that have read early know when their URL is matched."""
        app = self.find_app()
        if not self._listens_for_matches and app is not None:
            self._listens_for_matches = True
            request_started.connect(self._matched, app)

    def _matched(self, _app: Flask) -> None:
        state = self.request_state()
        if state is not None and state.early:
            state.matched()

    def snapshot(self) -> dict[str | None, ReplicaPoolSnapshot]:
        """Return the state of every pool, by the key of the bind that it copies."""
        return {
            key: routed.replicas.replica_pool.snapshot()
            for key, routed in self.routes.items()
        }

    def surroundings(self) -> Callable[[], AbstractContextManager[object]]:
        """Return what gives a background thread the application's context.

        It keeps neither this nor the application alive: the thread ends with them.
        """
        return partial(background_app_context, self.find_app)

    def begin_anew(self) -> None:
        """Forget, in a child process, the connections that are the parent's."""
        for routed in self.routes.values():
            routed.after_fork()
        self.fallback_share.renew()
        self.decider.renew()
        if self.observation is not None:
            self.observation.renew()

    def obey_orders(self) -> None:
        """Obey what is ordered by now, unless that goes on in the background."""
        for routed in self.routes.values():
            routed.obey_orders()


def state_of(app: Flask) -> AppState | None:
    """Return the state of an application, if it has the extension.

    One that has registered it before its engines were made may get it only now, with a
    context.
    """
    if STATE not in app.extensions and "replicated" in app.extensions:
        with app.app_context():
            pass
    state: AppState | None = app.extensions.get(STATE)
    return state


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
