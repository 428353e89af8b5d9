"""Background threads, what one of them calls besides its work, and their end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from .log_lines import Seldom

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EachSecond", "call_at_exit", "start_thread"]

T = TypeVar("T")

logger = logging.getLogger("flask_replicated")


def start_thread(name: str, target: Callable[..., object], *args: object) -> bool:
    """Start a daemon thread.

    Args:
        name: What the thread does; the package's name is put before it.
        target: The function to run.
        args: Its arguments.

    Returns:
        False if none can be started: the process is out of threads, or the interpreter
        is shutting down.
    """
    # By the module's name: gevent may have replaced the class since the import.
    thread = threading.Thread(
        target=_run_apart,
        args=(target, *args),
        name=f"flask_replicated {name}",
        daemon=True,
    )
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def _run_apart(target: Callable[..., object], *args: object) -> None:
    """Run a thread's function apart from the request that may have started it.

    What it sends to servers must be no span of a trace without an end, and what it logs
    no event of that request's.
    """
    with contextlib.ExitStack() as stack:
        # If they are not imported, nothing is traced or reported.
        tracing: Any = sys.modules.get("opentelemetry.instrumentation.utils")
        if hasattr(tracing, "suppress_instrumentation"):
            stack.enter_context(tracing.suppress_instrumentation())
        sentry: Any = sys.modules.get("sentry_sdk")
        if hasattr(sentry, "isolation_scope"):
            stack.enter_context(sentry.isolation_scope()).clear()
            sentry.get_current_scope().clear()
        target(*args)


class EachSecond:
    """Functions that are called together, about every second.

    One that fails keeps no other from being called. It keeps all of
    them alive, and the thread that calls it keeps it: none may own the application.

    Args:
        functions: Those to begin with.
    """

    def __init__(self, *functions: Callable[[], object]) -> None:
        self._functions = functions
        self._adding = threading.Lock()
        self._told = Seldom(60.0)

    def add(self, function: Callable[[], object]) -> None:
        """Call one more function from now on, unless it is called already."""
        with self._adding:
            if function not in self._functions:
                self._functions = (*self._functions, function)

    def __call__(self) -> None:
        """Call all of them."""
        for function in self._functions:
            try:
                function()
            except Exception:
                if self._told.is_due():
                    logger.exception("%r has failed, and is called again", function)


# For the exit hook below, which is never unregistered: it keeps none of them alive.
_at_exit: WeakKeyDictionary[Any, Callable[[Any], object]] = WeakKeyDictionary()


def call_at_exit(one: T, method: Callable[[T], object]) -> None:
    """Let an object end its background work before the process ends.

    Args:
        one: The object; nothing is called once it is gone.
        method: The method of its class that is called then.
    """
    _at_exit[one] = method


@atexit.register
def _call_all() -> None:
    with contextlib.ExitStack() as stack:  # which calls all, also after an error
        for one, method in list(_at_exit.items()):
            stack.callback(method, one)
