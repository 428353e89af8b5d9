"""A client of the application, that keeps what its answers tell it to keep."""

from __future__ import annotations

import http.client
import json
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode
from uuid import uuid4

from tests.chaos.workers import PATIENCE

if TYPE_CHECKING:
    from email.message import Message

    from tests.chaos.workers import Gunicorn

__all__ = ["Answer", "Browser"]

_HEADER: Final = "Replicated-Position"
_COOKIES: Final = {"session": "session"}


class Answer(NamedTuple):
    """An answer.

    Attributes:
        status: Of HTTP.
        fields: What it tells.
        carried: What its request carried of what the pin's store has.
        stored: What it has stored there; empty for nothing.
    """

    status: int
    fields: dict[str, Any]
    carried: str
    stored: str


class Browser:
    """Keeps cookies, and tokens in a header; several requests may be under way.

    Args:
        service: Who is asked.
        store: Where the application keeps its pins.
    """

    def __init__(self, service: Gunicorn, store: str) -> None:
        self._service = service
        self._cookie = _COOKIES.get(store, "replicated_pin")
        self._in_header = store == "header"
        self._user = uuid4().hex
        self._lock = threading.Lock()
        self._cookies: dict[str, str] = {}
        self._tokens: tuple[str, ...] = ()

    def ask(self, method: str, path: str, **query: object) -> Answer:
        """Send a request, and return the answer to it."""
        with self._lock:
            cookies, tokens = dict(self._cookies), self._tokens
        sent = {
            "Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items()),
            "X-User": self._user,
            _HEADER: ",".join(tokens),
        }
        where = ("127.0.0.1", self._service.port)
        connection = http.client.HTTPConnection(*where, timeout=PATIENCE)
        try:
            url = f"{path}?{urlencode(query)}"
            connection.request(method, url, headers=sent)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        stored = self._keep(response.headers, tokens)
        is_ours = response.headers.get_content_type() == "application/json"
        fields = json.loads(body) if is_ours else {"error": f"{response.status}"}
        carried = sent[_HEADER] if self._in_header else cookies.get(self._cookie, "")
        return Answer(response.status, fields, carried, stored)

    def _keep(self, headers: Message, sent: tuple[str, ...]) -> str:
        """Keep what an answer says; return what of it is the token.

        A new token stands for those that its request has sent, not for others that
        have come meanwhile.
        """
        given = [one.partition(";")[0] for one in headers.get_all("Set-Cookie", [])]
        found = dict(one.split("=", 1) for one in given)
        token = headers.get(_HEADER, "")
        with self._lock:
            self._cookies.update(found)
            if token:
                others = (one for one in self._tokens if one not in sent)
                self._tokens = (*others, token)
        return token if self._in_header else found.get(self._cookie, "")
