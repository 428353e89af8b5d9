"""The running request and the current application, as Flask knows them."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from flask import Flask, Request, current_app, has_app_context, has_request_context
from flask.globals import request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    FindApp = Callable[[], Flask | None]

__all__ = [
    "NO_ENDPOINT",
    "app_context",
    "background_app_context",
    "endpoint_name",
    "is_matched",
    "running_endpoint",
    "this_app",
    "this_request",
]

logger = logging.getLogger("flask_replicated")

NO_ENDPOINT = "(no endpoint)"
"""The name of the endpoint of a request that matched no route."""

# A request whose URL is not matched yet. Sessions and URL converters may read by then.
_NOT_MATCHED = "(before the URL is matched)"

# LocalProxy's documented way to the object itself, bound once.
this_app: Callable[[], Flask] = current_app._get_current_object  # type: ignore[attr-defined]  # noqa: SLF001 - the proxy's documented method is not in its type
this_request: Callable[[], Request] = request._get_current_object  # type: ignore[attr-defined]  # noqa: SLF001 - the same


def is_matched(current: Request) -> bool:
    """Whether it is known which view a request is for, or that there is none."""
    return current.url_rule is not None or current.routing_exception is not None


def endpoint_name(current: Request) -> str:
    """Return the endpoint of a request, or a description where it has none."""
    return current.endpoint or (NO_ENDPOINT if is_matched(current) else _NOT_MATCHED)


def running_endpoint() -> str | None:
    """Return the endpoint of the running request, or None outside a request."""
    return endpoint_name(this_request()) if has_request_context() else None


def app_context(app: Flask | None) -> AbstractContextManager[object]:
    """Return a block in which an application is the current one.

    Args:
        app: The application. With None, or if it is the current one already, the block
            pushes nothing.
    """
    if app is None or (has_app_context() and this_app() is app):
        return nullcontext()
    return app.app_context()


@contextmanager
def background_app_context(find_app: FindApp) -> Iterator[None]:
    """Push a new application context, in a background thread.

    Args:
        find_app: Returns the application, or None if it is gone; then nothing is
            pushed.
    """
    app = find_app()
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
            # It says nothing about the server.
            logger.debug("a teardown function failed in the background", exc_info=True)
