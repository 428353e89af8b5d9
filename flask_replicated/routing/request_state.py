"""What one request remembers: what it has done so far, and where its reads go.

It is an attribute of Flask's request object. So nested application contexts and several
sessions of one request share it, and it ends with the request, however that ends.
"""

from __future__ import annotations

import time
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from sqlalchemy import inspect

from flask_replicated.consistency.conversations import NOBODY, Carried
from flask_replicated.consistency.tokens import CLOCK_SKEW, NOTHING, Mark, Token

from .decision import FALLBACKS, LACKING, Decision, Role
from .flask_context import endpoint_name, is_matched, this_request
from .responses import OVER_WEBSOCKET

if TYPE_CHECKING:
    from flask import Flask, Request
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from balancers import Member
    from flask_replicated.settings.config import Settings

    from .decider import Decider
    from .explanations import Noted
    from .housekeeping import Sent
    from .responses import AsksPosition, PendingResponse, Responses

__all__ = ["RequestState"]

_UNDECIDED = Decision(Role.PRIMARY, "nothing is decided yet", "is_read")


class AppLike(Protocol):
    """What a request asks its application's state, which makes it; see ``state.py``.

    Attributes:
        settings: The application's settings.
        responses: Its responses, which remember clients' writes.
        decider: Decides where its requests read.
        plain_mappers: Mapped classes on the default bind that prefer no role.
        monotonic: Whether what each client reads counts for its later reads.
    """

    settings: Settings
    responses: Responses
    decider: Decider
    plain_mappers: set[Any]
    monotonic: bool

    def pins(self) -> bool:
        """Whether a write pins its client here."""

    def listen_for_matches(self) -> None:
        """Let requests that have read early know when their URL is matched."""


class RequestState:
    """What one request has done so far.

    Attributes:
        app: The application's state.
        latched: What tied the request to the primary, or None.
        marked: The role that a view decorator asked for, or None.
        decided: The decision that lasts, or None while there is none.
        kept: The replica that serves this request, by the engine of its pool.
        reads: Where its first reads went, and why, in their order.
        early: Sessions that have read from a replica before the URL was matched.
        writes: What it has committed, if it was only to read.
        observed: The tables that it has written, where that is only observed; else
            there is no such attribute.
        refused: Whether a replica would have refused a write of it, where that is only
            observed; else there is no such attribute.
        may_be_pinned: Whether its client may have to read from the primary, or it has
            written itself.
        may_demand: Whether its client may have to be shown something, or it has written
            itself, or what it reads counts for later reads. Else its reads may be
            served by any replica, outside blocks of ``guarantee()`` and
            ``using_token()``.
        positions: What its client carries, where that is all that has to be shown:
            until ``pending`` has news. Else None.
        pending: Its response, where ``positions`` is something.
        written: Where it has written, as far as that is known.
        waited: Whether it has waited for a replica already.
    """

    __slots__ = (
        "_carried",
        "_deciding",
        "_made",
        "_reads_primary_anyway",
        "app",
        "decided",
        "early",
        "kept",
        "latched",
        "marked",
        "may_be_pinned",
        "may_demand",
        "observed",
        "pending",
        "positions",
        "reads",
        "refused",
        "waited",
        "writes",
        "written",
    )

    pending: PendingResponse
    observed: tuple[str, ...]
    refused: bool

    def __init__(self, app: AppLike, decided: Decision | None) -> None:
        self.app = app
        self.decided = decided
        self.latched: str | None = None
        self.marked: Role | None = None
        self.kept: dict[Engine, Member[Engine]] = {}
        self.reads: list[Noted] = []
        self.early: WeakSet[Session] | None = None
        self.writes: tuple[Sent, ...] = ()
        # By whether the URL was not matched yet, and whether the pin was lifted.
        self._made: dict[tuple[bool, bool], Decision] = {}
        self.may_be_pinned = self.may_demand = self.waited = False
        self.written = NOTHING
        self._carried: Carried | None = None  # the store's answer
        self.positions: Carried | None = None
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
        # A block of guarantee() may lift the pin for a while.
        varies = self.may_be_pinned
        lifted = varies and not self.app.pins()
        decision = self.decided
        if early or varies:
            decision = self._made.get((early, lifted))
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
            if early or varies:
                self._made[early, lifted] = decision
            else:
                self.decided = decision
            if self.early and not early:
                self._leave_early(decision.role)
            if decision.role is Role.REPLICA:
                self.recall_early()
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
                _expire_unmodified(session)

    def _forget(self) -> None:
        self.decided, self._made = None, {}
        self._reads_primary_anyway = None

    def reads_primary_anyway(self) -> bool:
        """Whether its reads go to the primary without a pin, with all replicas well."""
        thread = get_ident()
        if self._deciding == thread:  # REPLICATED_IS_READ is being asked
            return False
        decision = self.decision
        if decision.word not in {"pinned", "fallback"}:
            return decision.role is Role.PRIMARY
        found = self._reads_primary_anyway
        if found is None:
            self._deciding = thread
            try:
                role = self.app.decider.role_by_rules(this_request(), self.marked)
            finally:
                self._deciding = None
            found = self._reads_primary_anyway = role is Role.PRIMARY
        return found

    def is_pinned(self) -> bool:
        """Whether its client is to read from the primary now: by time, or to be safe.

        What it must be shown by position is a demand on replicas, and no role.
        """
        app = self.app
        if not (self.may_be_pinned and app.pins()):
            return False
        token, lost = self.carried()
        if lost or not token.latest_untold:
            return lost
        age = time.time() - token.latest_untold
        return -CLOCK_SKEW <= age < app.settings.pin_seconds

    def ask_client(self, current: Request, app: Flask) -> None:
        """Find out what its client carries, if nothing but its cookie has to be asked.

        Nearly always that is nothing. What it demands by position is no role, and
        decides nothing.

        Args:
            current: The request.
            app: The application.
        """
        environ, responses = current.environ, self.app.responses
        tokens = responses.tokens
        pending: PendingResponse | None = environ.get(responses.key)
        if not tokens.in_cookies or (pending is not None and pending.has_news):
            self.may_be_pinned = True
        elif tokens.cookie.name in environ.get("HTTP_COOKIE", ""):
            found = self._carried = tokens.recall(current, app)
            self.may_be_pinned = found.lost or found.token.latest_untold > 0
            self.may_demand = found.token is not NOTHING
            if self.may_demand and pending is not None:
                self.positions, self.pending = found, pending
        if self.may_be_pinned or self.app.monotonic:
            self.may_demand, self.positions = True, None

    def recall(self, current: Request) -> Carried:
        """Return what the client carries; its store is asked once.

        Also when the request is over.

        Args:
            current: The request, or one with the same headers.
        """
        if self._carried is None:
            # While the store itself reads from the database.
            self._carried = Carried(lost=True)
            self._carried = self.app.responses.recall(current)
        return self._carried

    def carried(self) -> tuple[Token, bool]:
        """Return what the client must be shown, and whether a part of it is lost."""
        current = this_request()
        found, noted = self.recall(current), self.app.responses.noted_before(current)
        return found.token.merged(noted), found.lost

    def recall_early(self) -> None:
        """Ask the store, if it must be, before a session connects.

        Afterwards REPLICATED_PIN_KEY could not use the same session.
        """
        if self._carried is None and self.may_demand and self.app.pins():
            self.recall(this_request())

    def note_seen(self, bind: int, mark: Mark) -> None:
        """Note what the server showed at least that this request reads from."""
        responses, current = self.app.responses, this_request()
        responses.note_seen(self.recall, current, Token({bind: mark}))

    def note_primary_read(self, bind: int, connection: AsksPosition) -> None:
        """Note that this request reads from the primary, where that counts."""
        self.app.responses.note_primary_read(
            self.recall, this_request(), bind, weakref.ref(connection)
        )

    def carries(self, bind: int) -> bool:
        """Whether its client carries something for a bind."""
        return self._carried is not None and bind in self._carried.token

    def ignore(self, bind: int) -> None:
        """Forget what its client carries for a bind."""
        self._carried = (self._carried or NOBODY).without(bind)
        self.positions = None

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

    def committed(self, token: Token) -> None:
        """Note that a write of this request is now visible to others.

        Args:
            token: Where, as far as that is known.
        """
        current = this_request()
        if not is_matched(current):
            self.latch("it has committed a write before its URL was matched")
        self.written = self.written.merged(token)
        if not self.app.pins():
            return
        self.may_be_pinned = self.may_demand = True
        responses = self.app.responses
        missed = responses.note_write(self.recall, current, token)
        if current.headers.get("Upgrade", "").lower() == "websocket":
            missed = OVER_WEBSOCKET
        responses.warn_missed(missed, endpoint_name(current))

    def note_raw_connection(self, token: Token) -> None:
        """Note that the program has a driver's connection to the primary.

        It may write and commit with it until the response leaves, which cannot be seen.

        Args:
            token: Demands what was written by now.
        """
        self.latch("a driver's connection to the primary was asked for")
        if self.app.pins():
            self.app.responses.note_write(self.recall, this_request(), token)


def _expire_unmodified(session: Session) -> None:
    """Let a session load its objects again when they are next used.

    Objects that were changed, added or deleted are left as they are.
    """
    for loaded in list(session.identity_map.values()):
        state = inspect(loaded)
        if state.modified or loaded in session.deleted:
            continue
        mapper = state.mapper
        names = [*mapper.column_attrs.keys(), *mapper.relationships.keys()]
        # By name: without names related objects may be expired too, changed or not.
        names = [name for name in names if name in state.dict]
        if names:
            session.expire(loaded, names)
