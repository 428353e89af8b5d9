"""Connections whose use is told to a balancer that has asked for it.

A replica's connection counts as in use from the moment at which it is asked for until
it is given back. Its latency is that of the connect and of the first statement. Where
no balancer asks, none of this is called.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import DBAPIError

from flask_replicated.system.log_lines import Seldom

from .connections import ExecutingConnection
from .replica_connection import ReplicaConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancers import Feedback

__all__ = ["Flight", "Flights", "MeasuredConnection"]

logger = logging.getLogger("flask_replicated")

_T = TypeVar("_T")

_LOG_INTERVAL = 60.0
"""Seconds in which an error of a balancer's feedback is logged once."""


class Flights:
    """The uses of one replica.

    Args:
        feedback: What is told of them.
    """

    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback
        self._logged = Seldom(_LOG_INTERVAL)

    def begin(self) -> Flight:
        """Tell that a use begins."""
        flight = Flight(self)
        try:
            self._feedback.started()
        except Exception as error:  # noqa: BLE001 - the program's own must fail no read
            self._log(error)
        return flight

    def end(self, seconds: float, error: BaseException | None, *, used: bool) -> None:
        """Tell that a use is over.

        Args:
            seconds: What it took.
            error: Why it failed, or None.
            used: Whether a statement was sent, or it failed. Otherwise it teaches
                nothing, and is no faster than others.
        """
        try:
            if not used:
                seconds = max(seconds, self._feedback.latency or 0.0)
            self._feedback.finished(seconds, error)
        except Exception as raised:  # noqa: BLE001 - the same
            self._log(raised)

    def _log(self, error: Exception) -> None:
        if self._logged.is_due():
            logger.error(
                "%r cannot be told of its replica's use",
                self._feedback,
                exc_info=error,
            )


class Flight:
    """One use of a replica, which ends once: as its connection is given back.

    A connection that is never closed is given back when it is garbage-collected, and
    this use ends with it, since nothing else holds it.

    Args:
        flights: Told of the end.

    Attributes:
        awaits_answer: Whether no statement has been answered yet.
    """

    __slots__ = ("_began", "_error", "_flights", "_pid", "_seconds", "awaits_answer")

    def __init__(self, flights: Flights) -> None:
        self._flights: Flights | None = flights
        self._pid = os.getpid()
        self._began = time.monotonic()
        self._seconds = 0.0
        self._error: BaseException | None = None
        self.awaits_answer = True

    def connected(self) -> None:
        """Note that the connect has succeeded."""
        self._seconds = time.monotonic() - self._began

    def answered(self, seconds: float, error: BaseException | None = None) -> None:
        """Note that the first statement is over.

        Args:
            seconds: How long it took.
            error: Why it failed, or None.
        """
        self.awaits_answer = False
        self._seconds += seconds
        self._error = error

    def end(self, error: BaseException | None = None) -> None:
        """Tell that it is over, unless it was told; in a forked child it is not.

        Args:
            error: Why the connect has failed, or the connection was lost; or None.
        """
        flights, self._flights = self._flights, None
        if flights is None or self._pid != os.getpid():
            return
        error = error or self._error
        seconds = self._seconds or time.monotonic() - self._began
        self._error = None  # its traceback holds much
        used = error is not None or not self.awaits_answer
        flights.end(seconds, error, used=used)

    def __del__(self) -> None:
        self.end()


class MeasuredConnection(ExecutingConnection, ReplicaConnection):
    """A replica's connection whose use is told.

    Attributes:
        flight: Its use; None until it is connected.
    """

    flight: Flight | None = None

    def _around(
        self,
        execute: Callable[..., _T],
        statement: Any,
        parameters: Any,
        execution_options: Any,
    ) -> _T:
        """Execute a statement; the first one is timed."""
        flight = self.flight
        if flight is None or not flight.awaits_answer:
            return execute(statement, parameters, execution_options=execution_options)
        began = time.monotonic()
        try:
            result = execute(statement, parameters, execution_options=execution_options)
        except DBAPIError as error:
            flight.answered(time.monotonic() - began, error)
            raise
        except Exception:
            raise  # it was not sent, or is refused as a write: that says nothing
        except BaseException as error:  # a timeout of a greenlet, say
            flight.answered(time.monotonic() - began, error)
            raise
        flight.answered(time.monotonic() - began)
        return result

    def close(self) -> None:
        """End the transaction, if one is open, and give the connection back."""
        flight, lost = self.flight, self.invalidated
        try:
            super().close()
        finally:
            if flight is not None:
                flight.end(self.loss if lost else None)
