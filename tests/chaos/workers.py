"""Who serves the application: this process, or workers of gunicorn."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlencode

from examples.cluster import wait_until

from .app import ENVIRONMENT, Application

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "Answer",
    "Service",
    "Visitor",
    "greenlets",
    "gunicorn",
    "in_process",
    "started",
]

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 30.0
"""Seconds after which a visitor gives up."""

_COMMON: Final = {
    # The servers hang here, not the workers: nobody should kill those.
    "--timeout": 120,
    "--log-level": "warning",
    "--worker-tmp-dir": os.environ.get("TMPDIR", "/tmp"),
}

Answer = tuple[int, dict[str, Any]]
"""The status and the fields of an answer."""


class Visitor(Protocol):
    """A browser with cookies of its own."""

    def ask(self, method: str, path: str, **query: object) -> Answer:
        """Send a request, and return the answer to it."""


class Service(Protocol):
    """An application that runs.

    Attributes:
        workers: How many processes serve.
    """

    workers: int

    def visitor(self) -> Visitor:
        """Return a browser that has not been here yet."""


class _Direct:
    def __init__(self, application: Application) -> None:
        self._client = application.app.test_client()

    def ask(self, method: str, path: str, **query: object) -> Answer:
        response = self._client.open(path, method=method, query_string=query)
        return response.status_code, response.get_json()


class _InProcess:
    workers = 1

    def __init__(self, application: Application) -> None:
        self._application = application

    def visitor(self) -> Visitor:
        return _Direct(self._application)


@contextlib.contextmanager
def in_process(config: Mapping[str, Any]) -> Iterator[Service]:
    """Serve the application from this process."""
    application = Application(config)
    try:
        yield _InProcess(application)
    finally:
        application.dispose()


class _Browser:
    def __init__(self, port: int) -> None:
        self._port = port
        self._cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, **query: object) -> Answer:
        cookies = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        where = ("127.0.0.1", self._port)
        connection = http.client.HTTPConnection(*where, timeout=PATIENCE)
        try:
            url = f"{path}?{urlencode(query)}"
            connection.request(method, url, headers={"Cookie": cookies})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        for cookie in response.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        is_ours = response.headers.get_content_type() == "application/json"
        fields = json.loads(body) if is_ours else {"error": f"{response.status}"}
        return response.status, fields


class _Gunicorn:
    def __init__(self, port: int, workers: int) -> None:
        self.workers = workers
        self._port = port

    def visitor(self) -> Visitor:
        return _Browser(self._port)


@contextlib.contextmanager
def gunicorn(
    config: Mapping[str, Any], workers: int = 2, threads: int = 8
) -> Iterator[Service]:
    """Serve the application from worker processes of gunicorn."""
    options = {"--worker-class": "gthread", "--threads": threads}
    environment = {ENVIRONMENT: json.dumps(config)}
    named = "tests.chaos.app:served()"
    with started(named, environment, "/state", workers, options) as service:
        yield service


@contextlib.contextmanager
def greenlets(config: Mapping[str, Any], workers: int = 2) -> Iterator[Service]:
    """Serve it from gunicorn's workers of greenlets, which fork once it is loaded."""
    options = {"--worker-class": "gevent", "--preload": ""}
    environment = {ENVIRONMENT: json.dumps(config)}
    named = "tests.chaos.cooperative:served()"
    with started(named, environment, "/state", workers, options) as service:
        yield service


@contextlib.contextmanager
def started(
    application: str,
    environment: Mapping[str, str],
    page: str,
    workers: int,
    options: Mapping[str, object],
) -> Iterator[Service]:
    """Start gunicorn, and wait until every worker has answered.

    Args:
        application: What it serves, in its words.
        environment: Variables that the application reads.
        page: Tells the process in a field ``pid``.
        workers: How many processes serve.
        options: Of gunicorn, beside those that hold for all.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port = listener.getsockname()[1]
        bound = {"--bind": f"fd://{listener.fileno()}", "--workers": workers}
        both = {**_COMMON, **bound, **options}.items()
        words = [str(word) for option in both for word in option if word != ""]
        # gunicorn takes more options from the environment.
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *words, application],
            cwd=ROOT,
            env={**os.environ, **environment, "GUNICORN_CMD_ARGS": ""},
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        try:
            service = _Gunicorn(port, workers)
            answers = _answers(service, process, page)
            wait_until(answers, "gunicorn to answer", timeout=30)
            yield service
        finally:
            _end(process)


def _answers(
    service: Service, process: subprocess.Popen[bytes], page: str
) -> Callable[[], bool]:
    seen: set[int] = set()

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"gunicorn ended with {process.returncode}.")
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, fields = service.visitor().ask("GET", page)
            if status == 200:
                seen.add(fields["pid"])
        return len(seen) == service.workers

    return answers


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        process.wait(15)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # The group is its own session: workers that outlived their master end too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
