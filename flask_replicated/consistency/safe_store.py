"""A pin store that fails no request: the client's cookie takes over."""

from __future__ import annotations

import logging
import time
from threading import Lock
from typing import TYPE_CHECKING, Any

from balancers import CircuitBreaker
from balancers.errors import error_text
from flask_replicated.settings.validators import close_coroutine
from flask_replicated.system.forks import ForkAware

from .stores import MAX_TOKEN, MAX_TOKENS, NotStoredError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flask import Request, Response

    from balancers.breaker import Permit

    from .shared_stores import FindKey
    from .stores import Merge, PinStore

__all__ = ["UNREADABLE", "SafeStore"]

logger = logging.getLogger("flask_replicated")

UNREADABLE = "!"
"""In place of a token that is not known: no token is like it."""

_SLOW = 0.5
"""Seconds from which on a call counts as a failure, even if it returned a token."""

_WARNED_EVERY = 60.0
"""Seconds between two messages about single failures."""

_CARRIED = (
    "Until it works again, pins are in cookies and headers of the clients, and the "
    "primary serves: what the store has is not known"
)
_LOST = "The client is not pinned, and may not see its writes"

_AT_ONCE = 0.001
"""Seconds until the next trial."""

_MAX_TEXT = MAX_TOKENS * (MAX_TOKEN + 1)
"""Characters that are passed on; the rest is cut off, so that it cannot be read."""


class SafeStore(ForkAware):
    """Wraps a store, which may be down, slow or wrong, so that it never raises.

    Where the store does not take a token, its stand-ins get it: what the client
    itself keeps. What they have is always recalled besides. A store that fails twice in
    a row is left alone for a while, by a circuit breaker.

    Args:
        store: The store.
        stand_ins: Stores at the client.
        merge: Returns the maximum of several tokens, without those it cannot read.
        from_client: Whether the store's text is what the client sent. Then no failure
            keeps others from it.
        find_key: Called before the store is asked, which then asks itself: how long the
            user's own function takes says nothing about the store.
        clock: Returns monotonic seconds.

    Attributes:
        store: The wrapped store.
        from_client: As above: any client may send a token that cannot be read. From
            another store, one that cannot be read is a reason to worry.
        breaker: The circuit breaker.
    """

    def __init__(
        self,
        store: PinStore,
        stand_ins: Sequence[PinStore],
        merge: Merge,
        *,
        from_client: bool = False,
        find_key: FindKey | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.from_client = from_client
        self.breaker = CircuitBreaker(max_reset=30.0, clock=clock)
        self._stand_ins = tuple(stand_ins)
        self._merge = merge
        self._find_key = find_key
        self._clock = clock
        meanwhile = _CARRIED if self._stand_ins else _LOST
        self._outage = _Outage(type(store).__name__, meanwhile, clock)
        super().__init__()

    def __repr__(self) -> str:
        return f"<SafeStore of {type(self.store).__name__}, {self.breaker.state}>"

    def begin_anew(self) -> None:
        """Replace locks, in a forked child. The store sees to its own connections."""
        self.breaker.renew_lock()
        self._outage.renew_lock()

    def remember(self, response: Response, token: str) -> None:
        """Keep what a client must see; ``""`` is nothing to keep. It never raises."""
        if not token:
            return
        done = self._ask("remember", self._remember, response, token)
        if not done:
            for one in self._stand_ins:
                self._quietly(one.remember, response, token)

    def recall(self, request: Request) -> str:
        """Return what a client must see. It never raises.

        Returns:
            Tokens, separated by commas; those of stand-ins can be read. Of a store that
            fails it is unknown what the client must see: then one of them is no token.
        """
        found = self._ask("recall", self._recall, request)
        if found is None:
            found = "" if self.from_client else UNREADABLE
        if not self._stand_ins:
            return found
        asked = [self._quietly(one.recall, request) for one in self._stand_ins]
        others = [part for text in asked if text for part in str(text).split(",")]
        merged = self._quietly(self._merge, others) if others else ""
        return ",".join(filter(None, (found, merged)))

    def _remember(self, response: Response, token: str) -> str:
        # Of a store that is the program's own, it may be a coroutine.
        answer: Any = self.store.remember(response, token)  # type: ignore[func-returns-value]
        if close_coroutine(answer):
            raise TypeError("remember() is async: it must be a plain function")
        return token

    def _recall(self, request: Request) -> str:
        answer: Any = self.store.recall(request)
        close_coroutine(answer)
        if not isinstance(answer, str):
            raise TypeError(f"recall() returned {type(answer).__name__}, not str")
        return str(answer[:_MAX_TEXT])

    def _ask(self, call: str, ask: Callable[..., str], *args: object) -> str | None:
        """Call the store.

        Args:
            call: The name of its method.
            ask: Calls it.
            args: The arguments of *ask*.

        Returns:
            What *ask* returns; None if the store failed or was left alone; ``""`` if
            there was nothing to ask it.
        """
        self.notice_fork()
        permit = self.breaker.acquire()
        if permit is None and not self.from_client:
            return None
        try:
            if self._find_key is not None:
                self._find_key()
            begun = self._clock()
            answer = ask(*args)
        except NotStoredError as error:
            logger.debug("a pin goes to the client: %s", error)
            self._return(permit)
            return ""
        except Exception as error:  # noqa: BLE001 - the program's own, and a network's
            opened = self.breaker.failed(permit)
            self._outage.failed(call, error_text(error), opened=opened)
            return None
        seconds = self._clock() - begun
        if seconds >= _SLOW and not self.from_client:
            opened = self.breaker.failed(permit)
            self._outage.failed(call, f"it took {seconds:.1f} s", opened=opened)
        else:
            closed = self.breaker.succeeded(permit)
            self._outage.succeeded(call, closed=closed, healthy=self.breaker.quiet)
        return answer

    def _return(self, permit: Permit | None) -> None:
        """Leave the trial of a half-open breaker to the next one: this was none."""
        if permit is not None and permit.trial:
            self.breaker.pause(_AT_ONCE, permit)

    def _quietly(self, call: Callable[..., Any], *args: object) -> Any:
        """Call something of the client's; None if it fails."""
        try:
            return call(*args)
        except Exception as error:  # noqa: BLE001 - a session interface may be anyone's
            self._outage.warn_at_most("a pin's cookie or header", error_text(error))
            return None


class _Outage:
    """Logs that a store fails, once, and that it works again.

    Args:
        name: The store's.
        meanwhile: What that means.
        clock: Returns monotonic seconds.
    """

    def __init__(self, name: str, meanwhile: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._meanwhile = meanwhile
        self._clock = clock
        self._failing: set[str] = set()
        self._next_warning: dict[str, float] = {}
        self._lock = Lock()

    def renew_lock(self) -> None:
        """Replace the lock, in a forked child: its parent may have held it."""
        self._lock = Lock()

    def failed(self, call: str, why: str, *, opened: bool) -> None:
        """Note a failure; log it, if it is the first of an outage.

        Args:
            call: The store's method.
            why: What happened.
            opened: Whether the circuit breaker has opened. A single failure, such as
                that of one user's key, is logged once a minute at most.
        """
        with self._lock:
            known = bool(self._failing)
            tell = not known and (self._is_due(self._name) or opened)
            if known or tell:
                self._failing.add(call)
        logger.log(
            logging.WARNING if tell else logging.DEBUG,
            "the pin store %s fails: %s(): %s. %s",
            self._name,
            call,
            why,
            self._meanwhile,
        )

    def succeeded(self, call: str, *, closed: bool, healthy: bool) -> None:
        """Note a success; log it, if it ends an outage.

        Args:
            call: The store's method. If another fails, that one has to succeed, too.
            closed: Whether the circuit breaker has closed.
            healthy: Whether it is closed, and has counted no failure.
        """
        if not self._failing or not healthy:
            return
        with self._lock:
            known = bool(self._failing)
            if closed:
                self._failing.clear()
            self._failing.discard(call)
            over = known and not self._failing
        if over:
            logger.warning("the pin store %s works again", self._name)

    def warn_at_most(self, what: str, why: str) -> None:
        """Log a failure, once a minute at most."""
        with self._lock:
            due = self._is_due(what)
        logger.log(logging.WARNING if due else logging.DEBUG, "%s: %s", what, why)

    def _is_due(self, what: str) -> bool:
        now = self._clock()
        due = now >= self._next_warning.get(what, now)
        if due:
            self._next_warning[what] = now + _WARNED_EVERY
        return due
