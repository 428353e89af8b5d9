"""What the demo adds to the page of its guestbook: buttons that strike its standbys.

They kill, freeze, hold back and restore real servers, and belong to the demo alone.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from flask import Response, jsonify, redirect, request, url_for

from examples.guestbook import replicated

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask
    from werkzeug import Response as BaseResponse

    from examples.cluster import Cluster, Standby

__all__ = ["Faults", "Server"]


class Server(NamedTuple):
    """A standby, as the page shows it.

    Attributes:
        name: Its name.
        state: What was done to it, in a word or two.
        faults: What can be done to it now.
    """

    name: str
    state: str
    faults: tuple[str, ...]


class Faults:
    """The standbys of a cluster, and what a visitor does to them.

    Args:
        cluster: The cluster.

    Attributes:
        busy_with: Why the buttons do nothing at the moment; empty if they do.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.busy_with = ""
        self._cluster = cluster
        self._held_back: set[str] = set()
        self._lock = Lock()
        self._known: dict[str, Callable[[Standby], None]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "lag": self._hold_back,
            "restore": self._restore,
        }

    def add_page(self, app: Flask) -> None:
        """Give an application the page with these buttons.

        Only this machine sees it, as for any page without a guard.
        """
        app.debug = True
        app.jinja_env.globals["faults"] = self
        page = replicated.page()
        page.before_request(self._wait)
        # Behind the page's own guard, and its check of forms.
        page.add_url_rule("/faults", "faults", self._answer, methods=["POST"])
        app.register_blueprint(page)

    def servers(self) -> list[Server]:
        """Return all standbys."""
        return [self._shown(standby) for standby in self._cluster.standbys]

    def _shown(self, standby: Standby) -> Server:
        name = standby.name
        if not standby.is_running:
            return Server(name, "killed", ("restore",))
        if standby.is_frozen:
            return Server(name, "frozen", ("restore", "kill"))
        if name in self._held_back:
            return Server(name, "held back", ("restore", "freeze", "kill"))
        return Server(name, "running", ("kill", "freeze", "lag"))

    def _wait(self) -> tuple[Response, int] | None:
        """Let no button, not the page's own either, disturb what the tour shows."""
        if self.busy_with and request.method == "POST":
            return jsonify(message=self.busy_with), 409
        return None

    def _answer(self) -> BaseResponse:
        text, status = self._do(request.form["fault"], request.form["server"]), 200
        if text is None:
            text, status = "That cannot be done at the moment.", 409
        if request.accept_mimetypes.best != "application/json" and status == 200:
            return redirect(url_for(".index"), 303)
        answer: Response = jsonify(message=text)
        answer.status_code = status
        return answer

    def _do(self, fault: str, name: str) -> str | None:
        """Do something to a standby; return what was done, or None."""
        with self._lock:  # two visitors must not strike one server at a time
            standbys = {one.name: one for one in self._cluster.standbys}
            if name not in standbys:
                return None
            if fault not in self._shown(standbys[name]).faults:
                return None
            self._known[fault](standbys[name])
            return f"{name} is {self._shown(standbys[name]).state}."

    def _kill(self, standby: Standby) -> None:
        standby.kill()

    def _freeze(self, standby: Standby) -> None:
        standby.freeze()

    def _hold_back(self, standby: Standby) -> None:
        standby.pause_replay()
        self._held_back.add(standby.name)

    def _restore(self, standby: Standby) -> None:
        standby.thaw()
        standby.start()
        standby.resume_replay()
        self._held_back.discard(standby.name)
