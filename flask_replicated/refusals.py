"""What is said to code that tried to write where it may only read."""

from __future__ import annotations

from flask import has_request_context

from balancers.errors import redact

from .errors import WriteOnReplicaError
from .routing.flask_context import endpoint_name, this_request

__all__ = ["shown", "view_name", "write_refused"]

_SHOWN = 200  # characters of a statement that an error repeats


def view_name() -> str | None:
    """Return the endpoint that runs, or None outside a request."""
    return endpoint_name(this_request()) if has_request_context() else None


def shown(statement: object) -> str:
    """Return the beginning of a statement on one line, without passwords."""
    text = redact(" ".join(str(statement).split()))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def write_refused(statement: object, why: str) -> WriteOnReplicaError:
    """Make the error that says who tried to write where, and the ways out."""
    return WriteOnReplicaError(shown(statement), view_name(), why)
