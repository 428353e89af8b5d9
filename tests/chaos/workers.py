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
from examples.servers import free_port

from .app import ENVIRONMENT, Application

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "Answer",
    "Gunicorn",
    "Service",
    "Visitor",
    "greenlets",
    "gunicorn",
    "in_process",
    "started",
    "uwsgi",
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
        # A copy: another request of this browser may be answered meanwhile.
        known = self._cookies.copy()
        cookies = "; ".join(f"{name}={value}" for name, value in known.items())
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


class Gunicorn:
    """Workers of gunicorn, or of uWSGI.

    Attributes:
        workers: How many.
        port: Where they serve.
    """

    def __init__(self, port: int, workers: int) -> None:
        self.workers = workers
        self.port = port

    def visitor(self) -> Visitor:
        """Return a browser that has not been here yet."""
        return _Browser(self.port)


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
) -> Iterator[Gunicorn]:
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
        command = [sys.executable, "-m", "gunicorn", *words, application]
        # gunicorn takes more options from the environment.
        variables = {**environment, "GUNICORN_CMD_ARGS": ""}
        service, inherited = Gunicorn(port, workers), [listener.fileno()]
        with _running(service, command, variables, page, inherited):
            yield service


@contextlib.contextmanager
def uwsgi(
    application: str, environment: Mapping[str, str], page: str, workers: int
) -> Iterator[Gunicorn]:
    """Start uWSGI, whose workers fork once the application is loaded.

    Python is told nothing of the forks. The arguments are those of :func:`started`.
    """
    port = free_port()
    program = str(Path(sys.executable).with_name("uwsgi"))
    words = (
        f"--http-socket 127.0.0.1:{port} --processes {workers} --module {application}"
    )
    flags = "--master --enable-threads --die-on-term --disable-logging --need-app"
    command = [program, *flags.split(), *words.split()]
    service = Gunicorn(port, workers)
    # It looks for packages where it was built, not where Python's program is.
    variables = {**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with _running(service, command, variables, page, []):
        yield service


@contextlib.contextmanager
def _running(
    service: Gunicorn,
    command: list[str],
    environment: Mapping[str, str],
    page: str,
    inherited: list[int],
) -> Iterator[None]:
    """Run a server in a session of its own until the block is left."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        pass_fds=inherited,
        start_new_session=True,
    )
    try:
        answers = _answers(service, process, page)
        wait_until(answers, "every worker to answer", timeout=60)
        yield
    finally:
        _end(process)


def _answers(
    service: Service, process: subprocess.Popen[bytes], page: str
) -> Callable[[], bool]:
    seen: set[int] = set()

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}.")
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
