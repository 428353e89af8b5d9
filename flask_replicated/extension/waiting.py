"""Applications that register this extension before the one that has their engines."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Any

from flask import appcontext_pushed
from flask.globals import app_ctx

from flask_replicated.system.forks import ForkAware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from flask import Flask

__all__ = ["Waiting"]


class Waiting(ForkAware):
    """Registers an application once its engines are there, before they are used.

    That is at its first application context after ``db.init_app(app)``, at the latest
    at its first request, which fails where there are no engines then.

    Args:
        app: The application.
        register: Registers it, and raises an error if it cannot. What it would put
            around ``app.wsgi_app`` it puts around that of this object.

    Attributes:
        wsgi_app: What answers requests. What the program puts around the application
            later is around this object, so that other threads get it at any time.
    """

    wsgi_app: Callable[..., Any]

    def __init__(self, app: Flask, register: Callable[[Flask, Waiting], None]) -> None:
        self._app = app
        self._register = register
        self._done = False
        self.begin_anew()
        super().__init__()
        self.wsgi_app = app.wsgi_app
        app.wsgi_app = self  # type: ignore[method-assign]  # Flask's documented way
        appcontext_pushed.connect(self._pushed, app)

    def begin_anew(self) -> None:
        """Forget, in a child process, that a thread of its parent was just at it."""
        self._lock = RLock()
        self._begun = self._done

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer a request."""
        if not self._done:
            self._finish()
        answer: Iterable[bytes] = self.wsgi_app(environ, start_response)
        return answer

    def _pushed(self, *_: object, **__: object) -> None:
        if "sqlalchemy" not in self._app.extensions:
            return
        try:
            self._finish()
        except BaseException as error:
            # Who has pushed the context gets the error, and does not pop it.
            app_ctx.pop(error)
            raise

    def _finish(self) -> None:
        app = self._app
        with self._lock:
            if self._begun:  # done, or just doing it: that pushes contexts itself
                return
            self._begun = True
            try:
                self._register(app, self)
                self._done = True
            finally:
                self._begun = self._done
        appcontext_pushed.disconnect(self._pushed, app)
