"""Who may see the page, and which of its forms are believed."""

from __future__ import annotations

import logging
from contextlib import suppress
from hashlib import sha256
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flask import current_app
from itsdangerous import Signer

from flask_replicated.routing.overrides import using_master
from flask_replicated.system.log_lines import Seldom

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask, Request

    Guard = Callable[[], bool]

__all__ = [
    "COOKIE",
    "TOKEN",
    "form_token",
    "is_admitted",
    "is_local",
    "why_forged",
]

logger = logging.getLogger("flask_replicated")

COOKIE = "replicated_page"
"""The cookie whose owner alone can know the token of a form."""
TOKEN = "replicated_token"  # noqa: S105 - the name of a field
"""The field of a form that has its token."""
_SALT = "flask_replicated.page"
# What a proxy or a tunnel adds, and all that begins with the last one. Who sends it is
# not at this machine, or wants to seem to be.
_FORWARDED = (
    "cf-connecting-ip",
    "fastly-client-ip",
    "forwarded",
    "true-client-ip",
    "via",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-real-ip",
)
_FORWARDED_BEGIN = "x-forwarded"
_told_guard, _told_closed = Seldom(3600.0), Seldom(3600.0)


def is_admitted(guard: Guard | None, request: Request) -> bool:
    """Whether the running request may see the page.

    The guard reads from the primary, so that a right that was taken away is gone at
    once, and what it writes pins no client.

    Args:
        guard: The application's own check; without one, only this machine is admitted,
            and only while the application is being debugged. What it raises is raised.
        request: The running request.
    """
    if guard is not None:
        with using_master(pin=False):
            found: object = current_app.ensure_sync(guard)()
        if found is not True and found and _told_guard.is_due():
            logger.warning(
                "the guard of the page has returned a %s, and only True opens it",
                type(found).__name__,
            )
        return found is True
    local = is_local(request)
    if local and not current_app.debug and _told_closed.is_due():
        logger.info(
            "the page answers with 404: outside of debug mode it needs a guard, as in "
            "replicated.page(guard=lambda: current_user.is_admin)"
        )
    return local and current_app.debug


def is_local(request: Request) -> bool:
    """Whether a request has surely come from this machine, and meant it.

    A proxy on this machine passes on requests of others; ProxyFix believes what they
    say of their address. And the name of any website may lead to this machine.
    """
    for name in map(str.lower, request.headers.keys()):
        if name in _FORWARDED or name.startswith(_FORWARDED_BEGIN):
            return False
    return _is_loopback(request.remote_addr or "") and _is_own_name(request.host)


def _is_loopback(address: str) -> bool:
    with suppress(ValueError):
        found = ip_address(address)
        if isinstance(found, IPv6Address):
            found = found.ipv4_mapped or found
        return found.is_loopback
    return False


def _is_own_name(host: str) -> bool:
    with suppress(ValueError):
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)
    return False


def form_token(app: Flask, cookie: str) -> str:
    """Return what a form must carry that was made for the owner of a cookie.

    Without a ``SECRET_KEY`` it follows from the cookie alone, which no other site can
    read; with one, even an attacker who can set cookies for this site cannot make it.
    """
    signer = Signer(
        app.secret_key or "", salt=_SALT, key_derivation="hmac", digest_method=sha256
    )
    return signer.get_signature(cookie).decode()


def why_forged(request: Request) -> str | None:
    """Return why a form is not believed to come from the page itself; None if it is.

    A browser says where a form comes from, and only the page knows the token.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is None and origin is None:
        return "the request does not say where it comes from, as every browser does"
    own = site == "same-origin" if site is not None else _leads_to(origin, request)
    if not own:
        return "the form comes from another site"
    cookie = request.cookies.get(COOKIE, "")
    expected = form_token(current_app, cookie) if cookie else ""
    given = request.form.get(TOKEN, "")
    if not expected or not compare_digest(expected.encode(), given.encode()):
        return "the form is too old, or cookies are blocked: reload the page"
    return None


def _leads_to(origin: str | None, request: Request) -> bool:
    """Whether an origin is the host that was asked; its scheme may be a proxy's."""
    with suppress(ValueError):
        return urlsplit(origin or "").netloc == request.host
    return False
