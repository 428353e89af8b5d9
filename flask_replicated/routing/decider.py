"""Where the reads of a request go: gathers the facts, and asks :func:`decide`.

What depends on the view and the method alone is decided once, and remembered.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Protocol

from flask import has_request_context

from flask_replicated.blocks.decorator_order import warn_if_ignored

from .decision import PINNED, SWITCHED_OFF, Decision, Role, decide, marked_role
from .flask_context import endpoint_name, is_matched, this_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flask import Request

    from flask_replicated.errors import WriteOnReplicaError
    from flask_replicated.settings.config import Settings

    from .flask_context import FindApp

__all__ = ["Decider", "RequestFacts"]

logger = logging.getLogger("flask_replicated")


class RequestFacts(Protocol):
    """What a request has done so far, as far as that decides where it reads.

    Attributes:
        latched: What tied it to the primary, or None.
        marked: The role that a view decorator asked for, or None.
    """

    latched: str | None
    marked: Role | None

    def is_pinned(self) -> bool:
        """Whether its client is to read from the primary now."""


class Decider:
    """Decides where the requests of one application read.

    Args:
        settings: The application's settings.
        find_app: Returns the application, or None if there is none.

    Attributes:
        writers: How often a replica has refused a write, by endpoint.
        read_on_replica: ``AUTO_READ_ON_SLAVE``, unless an order switches it off.
        prepare: Called before a decision that is not known yet, such as a process's
            first one: orders may be waiting. None if there is nothing to call.
    """

    def __init__(self, settings: Settings, find_app: FindApp) -> None:
        self._settings = settings
        self._find_app = find_app
        self._decisions: dict[tuple[str, str], Decision] = {}
        self.writers: Counter[str] = Counter()
        self.read_on_replica = settings.read_on_replica
        self.prepare: Callable[[], object] | None = None

    def known(self, current: Request) -> Decision | None:
        """Return the decision on a request that has done nothing yet, if it is known.

        What the view and the method say never changes. The client must not be pinned.
        """
        rule = current.url_rule
        if rule is None:
            return None
        return self._decisions.get((rule.endpoint, current.method))

    def decide(self, current: Request, done: RequestFacts) -> Decision:
        """Decide where the reads of the running request go.

        Args:
            current: The request.
            done: What it has done so far.
        """
        # Read once: another thread of the request may latch it meanwhile, and that must
        # not be remembered for others.
        latched, marked, is_read = done.latched, done.marked, self._settings.is_read
        if latched is not None or marked is not None or is_read is not None:
            return self._decide(current, latched, marked, done.is_pinned)
        known, rule = self._decisions, current.url_rule
        decision = None
        if rule is not None:
            decision = known.get((rule.endpoint, current.method))
        if decision is None:
            decision = self._decide(current)
            # So the keys are bounded: a rule that lists its methods takes no other.
            if rule is not None and rule.methods is not None:
                known[rule.endpoint, current.method] = decision
        return PINNED if decision.by_method and done.is_pinned() else decision

    def role_by_rules(self, current: Request, marked: Role | None) -> Role:
        """Return where a request reads that is neither pinned nor latched.

        Args:
            current: The request.
            marked: The role that a view decorator asked for, or None.
        """
        return self._decide(current, mark=marked).role

    def _decide(
        self,
        current: Request,
        latched: str | None = None,
        mark: Role | None = None,
        is_pinned: Callable[[], bool] | None = None,
    ) -> Decision:
        """Decide anew; without *is_pinned*, as if the client were not pinned."""
        app, settings = self._find_app(), self._settings
        if self.prepare is not None:
            self.prepare()
        if mark is None and app is not None and current.endpoint is not None:
            mark = marked_role(app.view_functions.get(current.endpoint), current.method)
            if mark is None:
                warn_if_ignored(app, current.endpoint)
        explicit = latched is not None or mark is not None
        pinned = not explicit and is_pinned is not None and is_pinned()
        decided = partial(
            decide,
            latched=latched,
            mark=mark,
            known_writer=settings.learn_writers and self.in_known_writer(),
            pinned=pinned,
            method=current.method,
            readonly_methods=settings.readonly_methods,
            read_on_replica=self.read_on_replica,
        )
        decision = decided()
        if decision.by_method and settings.is_read is not None:
            decision = decided(is_read=_ask(settings.is_read, current))
        if decision.word == "off" and settings.read_on_replica:
            return SWITCHED_OFF
        return decision

    def switch(self, *, on: bool) -> bool:
        """Obey the kill switch; return whether that changes anything.

        Args:
            on: Whether requests may read from replicas, where the settings agree.
        """
        wanted = on and self._settings.read_on_replica
        changed, self.read_on_replica = wanted != self.read_on_replica, wanted
        if changed:
            # A new dictionary, as in learn_writer().
            self._decisions = {}
        return changed

    def renew(self) -> None:
        """Decide anew, as in a forked child, which orders may be waiting for."""
        self._decisions = {}

    def learn_writer(
        self, refusal: WriteOnReplicaError, about: Mapping[str, object]
    ) -> None:
        """Remember an endpoint whose write was recognised by a replica's server alone.

        Args:
            refusal: What the server's refusal was turned into.
            about: The ``extra`` of the log record.
        """
        endpoint = refusal.view
        if endpoint is None:
            return
        if endpoint not in self.writers:
            learnt = self._settings.learn_writers
            logger.warning(
                "%s Its requests %s.",
                refusal,
                "start on the primary from now on; this one's write runs there too, "
                "if it is the first statement of its session's transaction"
                if learnt
                else "fail, or send it twice",
                extra=about,
            )
        self.writers[endpoint] += 1
        # A new dictionary: what is being decided at this moment goes into the old one.
        self._decisions = {}

    def in_known_writer(self) -> bool:
        """Whether the running request's endpoint writes in ways not recognised."""
        writers = self.writers
        return (
            bool(writers)
            and has_request_context()
            and endpoint_name(this_request()) in writers
        )


def _ask(is_read: Callable[[Request], bool | None], current: Request) -> bool | None:
    """Return what ``REPLICATED_IS_READ`` says about a request.

    Before the URL is matched it may need what is not known yet, such as the request's
    rule. Then it says nothing for now, and is asked again afterwards.
    """
    try:
        return is_read(current)
    except Exception:
        if is_matched(current):
            raise
        logger.debug("REPLICATED_IS_READ before the URL is matched", exc_info=True)
        return None
