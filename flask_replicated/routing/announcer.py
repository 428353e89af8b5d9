"""Sends the signals of one bind, and says in log records what they are about."""

from __future__ import annotations

import logging
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

from .overrides import using_master

if TYPE_CHECKING:
    from collections.abc import Callable

    from blinker import NamedSignal
    from flask import Flask

    from .flask_context import FindApp

__all__ = ["Announcer"]

logger = logging.getLogger("flask_replicated")

_being_sent: ContextVar[frozenset[str]] = ContextVar("being_sent", default=frozenset())
"""The signals whose receivers are at work here: what they do sends them not again."""


def _no_app() -> None:
    return None


class Announcer:
    """Tells an application, and the readers of its log, what happens to one bind.

    Args:
        find_app: Returns the application, or None if there is none, or no more.

    Attributes:
        bind: The bind's key, as programs use it.
    """

    bind: str | None = None

    def __init__(self, find_app: FindApp = _no_app) -> None:
        self._find_app = find_app

    def send(
        self,
        signal: NamedSignal,
        *,
        replica: str | None = None,
        cause: str | None = None,
        line: str = "",
        **more: object,
    ) -> None:
        """Send a signal. No receiver can fail, stop or commit what it is told of.

        Args:
            signal: The signal.
            replica: The replica's name, if one is meant.
            cause: Why, in one word.
            line: What the log says of it at DEBUG; empty where it has a line already.
            more: Keywords that this signal alone has.
        """
        if line and logger.isEnabledFor(logging.DEBUG):
            with suppress(Exception):  # of a filter of the program's own
                extra = self.record(signal.name, replica, cause)
                logger.debug("%s", line, extra=extra)
        app = self._find_app() if signal.receivers else None
        sending = _being_sent.get()
        if app is None or signal.name in sending:
            return
        facts = {"bind": self.bind, "replica": replica, "cause": cause, **more}
        token = _being_sent.set(sending | {signal.name})
        try:
            # A context of its own, and so sessions of its own: what a receiver commits,
            # or rolls back, is not what the request has begun.
            with app.app_context(), using_master(pin=False):
                for receiver in list(signal.receivers_for(app)):
                    _call(receiver, app, facts, signal.name)
        except Exception:  # the application's own, at the end of its context
            logger.exception("the context around receivers has failed")
        finally:
            _being_sent.reset(token)

    def record(
        self, event: str, replica: str | None = None, cause: str | None = None
    ) -> dict[str, str | None]:
        """Return the ``extra`` of a log record.

        Args:
            event: The signal's name.
            replica: The replica's name, if one is meant.
            cause: Why, in one word.
        """
        return {
            "replicated_event": event,
            "replicated_bind": self.bind,
            "replicated_replica": replica,
            "replicated_cause": cause,
        }


def _call(
    receiver: Callable[..., object], app: Flask, facts: dict[str, object], name: str
) -> None:
    try:
        receiver(app, **facts)
    except Exception:
        logger.exception("a receiver of %r has failed", name)
