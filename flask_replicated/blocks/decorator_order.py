"""Decorators that stand above ``@app.get(...)``, where Flask does not see them.

A route registers the function below it. What a decorator above the route makes of that
function is never called by Flask, so it is ignored; only a log line can tell.
"""

from __future__ import annotations

import logging
import sys
from types import FunctionType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flask import Flask

__all__ = ["note_decorated", "warn_if_ignored"]

logger = logging.getLogger("flask_replicated")

_MAX_NOTED = 10_000  # functions; a program may decorate some at run time

# The decorator of each function that was given to one. Weak, so it keeps none alive.
_decorated: WeakKeyDictionary[FunctionType, str] = WeakKeyDictionary()


def note_decorated(function: object, decorator: str) -> None:
    """Remember that a function was decorated.

    Args:
        function: What the decorator was given; only plain functions are remembered.
        decorator: How it is written.
    """
    if isinstance(function, FunctionType) and len(_decorated) < _MAX_NOTED:
        _decorated[function] = decorator


def warn_if_ignored(app: Flask, endpoint: str) -> None:
    """Log, once for a view, that Flask does not see the decorator above its route.

    It cannot be told apart from a view that is also used under another name, decorated.
    So it is not logged if another view wraps this one, or if the view's own name in its
    module stands for the function without the decorator.

    Args:
        app: The application.
        endpoint: The endpoint of a view that no decorator of this package has marked.
    """
    view = app.view_functions.get(endpoint)
    if not isinstance(view, FunctionType):
        return
    decorator = _decorated.pop(view, None)
    if decorator is None or _is_wrapped(view, app.view_functions.values()):
        return
    if _find(view.__module__, view.__qualname__) is view:
        return
    logger.warning(
        "view %r ignores %s: it stands above the route, and Flask has registered the "
        "function below it. Put the route, such as @app.get(...), at the top and %s "
        "below it.",
        endpoint,
        decorator,
        decorator,
    )


def _is_wrapped(view: FunctionType, views: Iterable[object]) -> bool:
    """Whether one of these views is a decorated version of this one."""
    for outer in views:
        inner = getattr(outer, "__wrapped__", None)
        while inner is not None:
            if inner is view:
                return True
            inner = getattr(inner, "__wrapped__", None)
    return False


def _find(module: str | None, qualified_name: str) -> object:
    """Return what a name in a module stands for; None if it cannot be found."""
    found: object = sys.modules.get(module or "")
    for name in qualified_name.split("."):
        found = getattr(found, name, None)
    return found
