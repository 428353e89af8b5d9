"""An application around a pin store, whose tokens are whole numbers as text."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from flask import Flask, g, request

from flask_replicated.consistency.shared_stores import connect_redis
from flask_replicated.consistency.stores import before_session_is_saved

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flask import Response
    from werkzeug.test import TestResponse

    from flask_replicated.consistency.stores import PinStore

COOKIE, HEADER = "replicated_pin", "Replicated-Position"


def largest(texts: Iterable[str]) -> str:
    """Return the largest of numbers as text, and leave out what is none."""
    numbers = [int(one) for one in texts if one.isascii() and one.isdigit()]
    return str(max(numbers)) if numbers else ""


def current_user() -> str | None:
    """Return who sends the running request."""
    return request.headers.get("X-User")


def make_app(store: PinStore) -> Flask:
    """Return an application: POST /<token> remembers, and GET / recalls.

    As a caller of a store is to do it: what was recalled is merged with what is to be
    remembered, before Flask saves the session.
    """
    app = Flask("shop")
    app.secret_key = "not-a-secret"

    @app.post("/<token>")
    def write(token: str) -> str:
        g.token = largest([*store.recall(request).split(","), token])
        return ""

    @app.get("/")
    def read() -> str:
        return store.recall(request)

    @app.after_request
    def remember(response: Response) -> Response:
        with before_session_is_saved():
            if "token" in g:
                store.remember(response, g.token)
        return response

    return app


class Client:
    """A client that keeps cookies, and sends the header back.

    Args:
        app: The application.
        user: Who it is.
    """

    def __init__(self, app: Flask, user: str | None = "ann") -> None:
        self.http = app.test_client()
        self.headers = {} if user is None else {"X-User": user}

    def write(self, token: int | str) -> TestResponse:
        """Write, so that the application remembers a token."""
        response = self.http.post(f"/{token}", headers=self.headers)
        assert response.status_code == 200
        if HEADER in response.headers:
            self.headers[HEADER] = response.headers[HEADER]
        return response

    def read(self) -> str:
        """Return the largest of what the application recalls."""
        response = self.http.get("/", headers=self.headers)
        assert response.status_code == 200
        return largest(response.text.split(","))


@pytest.fixture
def redis_url() -> str:
    """Give the URL of a Redis server that can be reached."""
    redis: Any = pytest.importorskip("redis")
    url = os.environ.get("REDIS_URL", "redis://localhost:6379/13")
    client = connect_redis(url)
    try:
        client.ping()
    except redis.RedisError:
        pytest.skip(f"no Redis server at {url}")
    finally:
        client.close()
    return url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[Any]:
    """Give a client of it."""
    client = connect_redis(redis_url)
    yield client
    client.close()


@pytest.fixture
def prefix(redis_client: Any) -> Iterator[str]:
    """Give a prefix for keys, which are removed afterwards."""
    own = f"flask_replicated:test:{uuid4().hex}:"
    yield own
    for key in redis_client.scan_iter(f"{own}*", count=10_000):
        redis_client.delete(key)


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the seconds that it shows."""
        return self.now


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as a warning or worse."""
    return [one.getMessage() for one in caplog.records if one.levelno >= 30]
