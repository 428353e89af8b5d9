"""What visitors ask for. Each visit has a number, and asks for nothing twice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from itsdangerous import URLSafeSerializer

from .shop import SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from .shop import Shop

__all__ = ["VISITS", "Visit"]

COOKIE: Final = "replicated_pin"


class Visit(NamedTuple):
    """A visit of one kind.

    Attributes:
        path: Where it goes; ``{}`` stands for its number.
        status: What it is answered.
        method: How it asks.
        cookie: Returns the pin that it brings.
        again: Whether it comes back with the cookies that it was given.
        leaves: Whether it leaves after the first words of the answer.
        forgetful: Whether the view forgets to close what it opens.
    """

    path: str
    status: int = 200
    method: str = "GET"
    cookie: Callable[[int], str] | None = None
    again: bool = False
    leaves: bool = False
    forgetful: bool = False

    def responses(self, shop: Shop, number: int) -> Iterator[TestResponse]:
        """Ask, and return each answer; whoever has it must close it."""
        client = shop.app.test_client(use_cookies=self.again)
        yield self._ask(client, number)
        if self.again:
            yield self._ask(client, number, method="GET")

    def _ask(
        self, client: FlaskClient, number: int, method: str | None = None
    ) -> TestResponse:
        headers = {}
        if self.cookie is not None:
            headers["Cookie"] = f"{COOKIE}={self.cookie(number)}"
        path = self.path.format(number)
        how = (method or self.method).format(number)
        response = client.open(path, method=how, headers=headers)
        if self.leaves:
            next(response.iter_encoded())
        else:
            response.get_data()
        return response


def _signed(number: int, age: float, secret: str = SECRET) -> str:
    serializer = URLSafeSerializer(secret, salt=f"flask-replicated.{COOKIE}")
    value: Any = serializer.dumps(f"{time.time() - age:.3f}")
    return f"{value}; visitor={number}"


def _get(path: str, **options: Any) -> Visit:
    return Visit(f"/{path}/{{}}", **options)


VISITS: Final[tuple[Visit, ...]] = (
    _get("read"),
    _get("read", again=True),
    _get("read", method="HEAD"),
    _get("read", method="POST"),
    _get("read", method="OPTIONS"),
    _get("read", method="DELETE", status=405),
    _get("read", method="BREW{}", status=405),
    _get("write"),
    _get("write", method="POST"),
    _get("write", method="POST", again=True),
    _get("write", again=True),
    _get("fail", status=500),
    _get("fail", method="POST", status=500),
    _get("fail_flushed", method="POST", status=500),
    _get("fail_flushed", status=500),
    _get("fail_in_sql", status=500),
    _get("refuse", status=403),
    _get("forbidden_write", status=500),
    _get("stream"),
    _get("stream", leaves=True),
    _get("stream_block"),
    _get("stream_block", leaves=True),
    _get("abandon"),
    _get("nested"),
    _get("nested", method="POST"),
    _get("raw_text"),
    _get("raw_text", method="POST"),
    _get("core_select"),
    _get("orm_select"),
    _get("own_tables"),
    _get("union"),
    _get("connection"),
    _get("forget", forgetful=True),
    _get("hidden_write"),
    _get("savepoints"),
    _get("dml"),
    _get("dml", method="POST"),
    _get("asynchronous"),
    _get("marked_changes"),
    _get("marked_master"),
    _get("marked_slave", method="POST"),
    _get("nowhere", status=404),
    Visit("/nowhere_{}/at/all", status=404, method="POST"),
    Visit("/read/no-number-{}", status=404),
    _get("read", cookie=lambda n: _signed(n, age=1)),
    _get("read", cookie=lambda n: _signed(n, age=3600)),
    _get("read", cookie=lambda n: _signed(n, age=-3600)),
    _get("read", cookie=lambda n: _signed(n, 1, secret="another")),
    _get("read", cookie=lambda n: f"{n}.forged.{n}"),
    _get("read", cookie=lambda n: f"{n}" * 500),
    _get("write", method="POST", cookie=lambda n: f"\xff{n}"),
)
