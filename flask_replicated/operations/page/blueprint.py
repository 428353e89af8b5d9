"""The page as a blueprint: who is admitted sees it, and may press its buttons."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
import weakref
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    after_this_request,
    jsonify,
    redirect,
    request,
    send_from_directory,
    url_for,
)
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateNotFound
from markupsafe import Markup
from werkzeug.exceptions import MethodNotAllowed

from balancers.strategies import reads_weights
from flask_replicated.errors import ConfigurationError
from flask_replicated.routing.flask_context import endpoint_name, this_app
from flask_replicated.routing.state import STATE, AppState, current_app_state
from flask_replicated.system.log_lines import Seldom

from . import graphs, view
from .admission import COOKIE, TOKEN, form_token, is_admitted, why_forged
from .buttons import OrderError, obey
from .decisions import Decisions
from .observed import observed_view
from .recorder import MINUTES, Recorder
from .workers import current_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from _typeshed.wsgi import WSGIEnvironment
    from flask.blueprints import BlueprintSetupState
    from flask.typing import ResponseReturnValue
    from werkzeug.datastructures import Headers

    from .recorder import Change, Frame, Snapshots
    from .workers import Workers

__all__ = ["make_page"]

logger = logging.getLogger("flask_replicated")

_MEMORY = "replicated.page"
"""The key of ``app.extensions`` under which the page's memory is kept."""
_OWN = "flask_replicated.page"
"""The key of the WSGI environment that marks what is not to be noted, or not again."""
_HERE = Path(__file__).parent
_EXTRA = "replicated/extra.html"
"""A template of the application's own, which the page shows above the replicas."""
_SHOWN_CHANGES = 40
_SHOWN_DECISIONS = 30
_told_failure, _told_section = Seldom(60.0), Seldom(60.0)
_READS = ("GET", "HEAD")
_ANSWERED = (*_READS, "POST")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_FOREIGN = ("Access-Control-Allow-Origin", "Access-Control-Allow-Credentials")


class _PageResponse(Response):
    """A response whose policy no ``after_request`` function of the application relaxes.

    Nor one that would forbid the page's own script, or let other sites read the page.
    """

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        """Return the headers, as they are sent."""
        headers = super().get_wsgi_headers(environ)
        headers.update(_HEADERS)
        for name in _FOREIGN:
            headers.remove(name)
        return headers


def make_page(guard: Callable[[], bool] | None, url_prefix: str) -> Blueprint:
    """Return the page.

    Args:
        guard: Whether the running request may see it, and give orders; None for this
            machine alone, in debug mode.
        url_prefix: Where it is.

    Raises:
        ConfigurationError: One of the two cannot be right.
    """
    if guard is not None and not callable(guard):
        raise ConfigurationError(
            "page(guard=...)", guard, "must be a function without arguments, or None."
        )
    if not url_prefix.startswith("/") or url_prefix.endswith("/"):
        raise ConfigurationError(
            "page(url_prefix=...)",
            url_prefix,
            "must begin with a slash and not end with one, such as '/replicated'.",
        )
    page = Blueprint("replicated", __name__, url_prefix=url_prefix)

    @page.before_request
    def admit() -> None:
        _admit(guard)

    templates = _templates()

    # Libraries ask a view for its name, which a partial() has not.
    # The prefix may have parts that vary, which are of no interest here.
    plainly = {"provide_automatic_options": False, "merge_slashes": False}

    @page.route("/", methods=_ANSWERED, strict_slashes=False, **plainly)
    def index(**_values: object) -> ResponseReturnValue:
        return _order() if request.method == "POST" else _show(templates)

    @page.route("/static/<path:filename>", methods=_READS, **plainly)
    def static(filename: str, **_values: object) -> Response:
        return send_from_directory(_HERE / "static", filename)

    @page.route("/", websocket=True, strict_slashes=False, **plainly)
    @page.route("/static/<path:filename>", websocket=True, **plainly)
    def handshake(**_values: object) -> ResponseReturnValue:
        abort(404)

    page.record(_take_every_method)
    page.record(_register)
    page.teardown_app_request(_note_reads)
    return page


class _EveryMethod(set[str]):
    """The methods that are answered, and yet every method is among them."""

    def __contains__(self, _method: object) -> bool:
        return True


def _take_every_method(setup: BlueprintSetupState) -> None:
    """Let the page be asked by any method: Flask's 405 would come before the guard.

    So would its 400 for the handshake of a WebSocket, which has a rule for that.
    """
    for name in ("index", "handshake", "static"):
        endpoint = f"{setup.name_prefix}.{setup.name}.{name}".lstrip(".")
        for rule in setup.app.url_map.iter_rules(endpoint):
            rule.methods = _EveryMethod(rule.methods or ())


def _templates() -> Environment:
    """Return the page's own environment.

    The application's runs context processors, which may read the database, and may be
    set up in any way.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ago"] = view.ago
    environment.filters["clock"] = _clock
    return environment


def _clock(seconds: float) -> str:
    """Return a moment, in Unix seconds, as the time of day."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%H:%M:%S}"


# ------------------------------------------------------------------ what is remembered


def _register(setup: BlueprintSetupState) -> None:
    """Remember from now on what the page will show."""
    if isinstance(setup.app, Flask):
        _memory(setup.app)


class _Memory(NamedTuple):
    """What an application remembers for the page."""

    recorder: Recorder
    decisions: Decisions


def _memory(app: Flask) -> _Memory | None:
    """Return an application's memory; None as long as it is not replicated."""
    found: _Memory | None = app.extensions.get(_MEMORY)
    state: AppState | None = app.extensions.get(STATE)
    if found is None and state is not None:
        # The thread that looks must not keep the application alive.
        made = _Memory(Recorder(partial(_snapshots, weakref.ref(state))), Decisions())
        found = app.extensions.setdefault(_MEMORY, made)
        state.each_second.add(found.recorder.look)
    return found


def _note_reads(_error: BaseException | None) -> None:
    """Remember where the request that ends has read; it never fails."""
    try:
        app = this_app()
        memory, state = _memory(app), current_app_state()
        if memory is None or state is None or _OWN in request.environ:
            return
        request.environ[_OWN] = True  # the page may be registered twice
        reads = state.explanation()
        if reads:
            memory.decisions.note(request.method, endpoint_name(request), reads)
    except Exception:
        if _told_failure.is_due():
            logger.exception("the page could not note where a request has read")


def _snapshots(state: weakref.ref[AppState]) -> Snapshots:
    found = state()
    return {} if found is None else found.snapshot()


# ----------------------------------------------------------------------- one request


def _admit(guard: Callable[[], bool] | None) -> None:
    """Refuse a request that may not see the page, or a form that is not the page's."""
    request.environ[_OWN] = True
    if not is_admitted(guard, request):
        abort(404)
    after_this_request(_protected)
    rule = request.url_rule
    answered = sorted((rule and rule.methods) or ())
    if request.method not in answered:
        raise MethodNotAllowed(answered)
    if request.method not in _READS:
        forged = why_forged(request)
        if forged is not None:
            abort(_answer(f"Nothing was done: {forged}.", 403))


def _protected(response: Response) -> Response:
    response.headers.update(_HEADERS)
    return response


def _show(templates: Environment) -> ResponseReturnValue:
    """Show the page, or only what changes on it."""
    app, began = this_app(), time.perf_counter()
    cookie = request.cookies.get(COOKIE) or secrets.token_urlsafe(24)
    only_live = "live" in request.args
    template = templates.get_template("live.html" if only_live else "page.html")
    shown = _context(app, _memory(app), cookie)
    text = template.render(shown, took=partial(_took, began))
    # An error's text may have what no encoding knows, such as a part of a file's name.
    response = _PageResponse(text.encode(errors="backslashreplace"))
    if COOKIE not in request.cookies:
        secure = request.is_secure or app.config["SESSION_COOKIE_SECURE"]
        response.set_cookie(
            COOKIE,
            cookie,
            path=_url(".index"),
            httponly=True,
            samesite="Lax",
            secure=bool(secure),
        )
    return response


def _took(began: float) -> str:
    return f"{(time.perf_counter() - began) * 1000:.0f} ms"


def _is_off(state: AppState | None, workers: Workers) -> bool:
    """Whether requests do not read from replicas, here or in another worker."""
    here = state is not None and not state.decider.read_on_replica
    return here or any(one.off for one in workers.accounts)


def _context(app: Flask, memory: _Memory | None, cookie: str) -> dict[str, Any]:
    """Return what the templates show."""
    state = current_app_state()
    found: Snapshots = {}
    frames: list[Frame] = []
    changes: list[Change] = []
    if memory is not None and state is not None:
        state.obey_orders()
        found = memory.recorder.note()
        frames = memory.recorder.frames(found)
        changes = memory.recorder.changes()[:_SHOWN_CHANGES]
    workers = current_workers()
    pools = [
        view.pool_view(number, bind, pool, frames, workers)
        for number, (bind, pool) in enumerate(found.items())
    ]
    off, fields = _is_off(state, workers), _fields(app, cookie)
    observed = state is not None and state.observation is not None
    may_switch = state is not None and state.settings.read_on_replica
    serves = not observed and any(pool.replicas for pool in pools)
    return {
        "app_name": app.name,
        "summary": view.summary(pools, off=off, observed=observed),
        "pools": pools,
        "changes": changes,
        "change_text": view.change_text,
        "decisions": []
        if memory is None
        else memory.decisions.latest(_SHOWN_DECISIONS),
        "observed": observed_view(),
        "workers": workers,
        "off": off,
        "weighs": state is not None and reads_weights(state.settings.balancer),
        "may_switch": may_switch,
        "switches": may_switch and (off or serves),
        "extra": _extra(app, fields),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "now": time.time(),
        "minutes": MINUTES,
        "width": graphs.WIDTH,
        "height": graphs.HEIGHT,
        "url": _url(".index"),
        "static": _static_url,
        "fields": fields,
    }


def _url(endpoint: str, **values: str) -> str:
    """Return a URL of the page, below the same prefix as the running request."""
    return url_for(endpoint, **{**(request.view_args or {}), **values})


def _static_url(name: str) -> str:
    return _url(".static", filename=name)


def _fields(app: Flask, cookie: str) -> dict[str, str]:
    """Return what each form carries: our token, and Flask-WTF's if it asks for one."""
    fields = {TOKEN: form_token(app, cookie)}
    make = app.jinja_env.globals.get("csrf_token")
    if "csrf" in app.extensions and callable(make):
        name = app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token")
        with suppress(RuntimeError):  # without a SECRET_KEY it accepts no form at all
            fields[name] = str(make())
    return fields


def _extra(app: Flask, fields: Mapping[str, str]) -> Markup:
    """Return what the application itself adds to the page; it is not escaped again.

    If it fails, the rest of the page is still shown.

    Args:
        app: The application.
        fields: What its forms must carry.
    """
    hidden = Markup('<input type="hidden" name="{}" value="{}">')
    form_fields = Markup().join(hidden.format(*field) for field in fields.items())
    try:
        template = app.jinja_env.get_template(_EXTRA)
        shown = template.render(form_fields=form_fields)
    except Exception as error:  # a template may do anything
        if isinstance(error, TemplateNotFound) and error.name == _EXTRA:
            return Markup()
        if _told_section.is_due():
            logger.exception("the template %s, shown on the page, has failed", _EXTRA)
        shown = f"<p>The template {_EXTRA} has failed; the log says why.</p>"
    return Markup(shown)  # noqa: S704 - a template of the application's


def _order() -> ResponseReturnValue:
    """Do what a form says."""
    try:
        done = obey(request.form)
    except OrderError as error:
        return _answer(str(error), 400)
    return _answer(done, 200)


def _answer(text: str, status: int) -> Response:
    """Return what has become of a form: to the script, or to a browser without one."""
    if request.accept_mimetypes.best == "application/json":
        response = jsonify(message=text)
        response.status_code = status
        return response
    if status == 200:  # noqa: PLR2004 - OK
        return redirect(_url(".index"), 303)  # type: ignore[return-value]  # werkzeug's
    return Response(text, status, mimetype="text/plain")
