"""What the tour plays with: a screen, a served guestbook, its visitors."""

from __future__ import annotations

import http.client
import logging
import re
import sys
import threading
import time
from collections import Counter, deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlencode

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from werkzeug.serving import WSGIRequestHandler, make_server

from examples.guestbook import create_app, db, members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from rich.console import RenderableType
    from typing_extensions import Self

    from examples.cluster import Cluster
    from examples.faults import Faults

__all__ = ["Check", "Guestbook", "Load", "Page", "Screen", "Visitor", "bar", "grid"]

_KEPT_FAILURES: Final = 100
_SERVED: Final = re.compile(r"served by (\S+) \((\w+)\)")


@dataclass(frozen=True)
class Check:
    """One thing that was shown.

    Attributes:
        shown: What, in a few words.
        expected: What should have been seen.
        observed: What was seen.
        ok: Whether that is the same.
    """

    shown: str
    expected: str
    observed: str
    ok: bool

    @classmethod
    def same(cls, shown: str, expected: object, observed: object) -> Self:
        """Compare two values that read well as they are."""
        return cls(shown, str(expected), str(observed), expected == observed)


class Screen:
    """The terminal; where there is none, plain lines.

    Attributes:
        is_live: Whether something can move on it.
    """

    def __init__(self) -> None:
        # An environment that asks for colours everywhere does not mean files.
        terminal = sys.stdout.isatty()
        self._console = Console(force_terminal=terminal, highlight=False, markup=False)
        self.is_live = terminal and not self._console.is_dumb_terminal

    def title(self, text: str) -> None:
        """Print a heading."""
        self._console.print(f"\n{text}", style="bold cyan")

    def say(self, text: str) -> None:
        """Explain something to the reader."""
        self._console.print(text)

    def note(self, text: str) -> None:
        """Tell what has just happened."""
        self._console.print(f"  {text}", style="green", soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Print a table."""
        self._console.print(what)

    @contextmanager
    def follow(self, logger: str) -> Iterator[None]:
        """Show what is logged meanwhile, the first words of each line."""
        log, handler = logging.getLogger(logger), _LogLines(self)
        log.setLevel(logging.INFO)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show that something takes its time."""
        if self.is_live:
            with self._console.status(text, spinner="line"):
                yield
        else:
            self.say(text)
            yield

    def board(
        self, draw: Callable[[], RenderableType]
    ) -> AbstractContextManager[object]:
        """Keep *draw* up to date at the foot of a terminal."""
        if not self.is_live:
            return nullcontext()
        console = self._console
        return Live(get_renderable=draw, console=console, transient=True)


class _LogLines(logging.Handler):
    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a line, unless it repeats the one before."""
        line = record.getMessage().partition(": ")[0]
        if line != self._last:
            self._last = line
            self._screen.note(f"log of the application: {line}")


def grid(*columns: str) -> Table:
    """Return an empty table."""
    return Table(*columns, box=box.SIMPLE, padding=(0, 1))


def bar(share: float, width: int = 30) -> str:
    """Return a bar for a share from 0 to 1."""
    return "#" * round(max(0.0, min(1.0, share)) * width)


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        """Say nothing of each request."""


class Guestbook:
    """A guestbook on a cluster, behind a threaded HTTP server of its own.

    Args:
        cluster: The servers.
        settings: Of the application.
        port: Of the HTTP server; 0 for any that is free.
        faults: What a visitor may do to the standbys, on the page; None for no page.

    Attributes:
        port: Of the HTTP server, on 127.0.0.1.
        url: Its address.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: Mapping[str, object],
        port: int = 0,
        faults: Faults | None = None,
    ) -> None:
        standbys = [standby.url() for standby in cluster.standbys]
        self._app = create_app(cluster.primary.url(), standbys, **settings)
        if faults is not None:
            faults.add_page(self._app)
        # The tables were made a moment ago.
        cluster.wait_replicated()
        self._server = make_server(
            "127.0.0.1", port, self._app, threaded=True, request_handler=_QuietHandler
        )
        self.port = self._server.port
        self.url = f"http://127.0.0.1:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def in_rotation(self) -> list[str]:
        """Return the names of the replicas that reads go to at the moment."""
        with self._app.app_context():
            return [member.name for member in members() if member.live]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self._app.app_context():
            for engine in db.engines.values():
                engine.dispose()


class Page(NamedTuple):
    """What a visitor sees.

    Attributes:
        server: Who served it, by its own word.
        role: ``primary`` or ``replica``.
        html: All of it.
    """

    server: str
    role: str
    html: str


class Visitor:
    """A browser that has not been here yet; it keeps the cookies that it is given.

    It keeps them longer than it should, so what ends is ended by the server.

    Args:
        guestbook: Where it goes.
    """

    def __init__(self, guestbook: Guestbook) -> None:
        self._port = guestbook.port
        self._cookies: dict[str, str] = {}

    def read(self) -> Page:
        """Open the page.

        Raises:
            RuntimeError: The answer is no page.
        """
        html = self._ask("GET", None, 200)
        found = _SERVED.search(html)
        if found is None:
            raise RuntimeError("The page does not say who served it.")
        return Page(found[1], found[2], html)

    def write(self, author: str, message: str) -> None:
        """Send the form.

        Raises:
            RuntimeError: It was not taken.
        """
        self._ask("POST", urlencode({"author": author, "message": message}), 303)

    def _ask(self, method: str, form: str | None, status: int) -> str:
        headers = {"Cookie": "; ".join(f"{k}={v}" for k, v in self._cookies.items())}
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request(method, "/", form, headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != status:
            raise RuntimeError(f"{method} / was answered with {response.status}.")
        for cookie in response.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        return text


class Load:
    """A steady load of reads, each by a visitor of its own.

    Args:
        guestbook: Who is read.
        readers: How many threads read.
        pause: Seconds from an answer to the same thread's next read.
        writes_every: Seconds between two entries of one more visitor; None for none.

    Attributes:
        readers: How many threads read.
        failed: How many requests went wrong.
        failures: What went wrong, for the first of them and the last.
    """

    def __init__(
        self,
        guestbook: Guestbook,
        readers: int = 4,
        pause: float = 0.02,
        writes_every: float | None = None,
    ) -> None:
        self.readers = readers
        self.failed = 0
        self.failures: list[str] = []
        self._guestbook = guestbook
        self._pause = pause
        self._served: Counter[str] = Counter()
        self._latest: deque[tuple[float, str]] = deque(maxlen=1000)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(readers)]
        if writes_every is not None:
            writer = threading.Thread(target=self._write, args=(writes_every,))
            self._threads.append(writer)

    def _write(self, every: float) -> None:
        author = Visitor(self._guestbook)
        while not self._stop.wait(every):
            try:
                author.write("Ann", f"It is {time.strftime('%H:%M:%S')}.")
                author.read()
            except Exception as error:  # noqa: BLE001 - the same as in _run()
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self.failed += 1
            del self.failures[_KEPT_FAILURES - 1 :]
            self.failures.append(f"{type(error).__name__}: {error}")

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                server = Visitor(self._guestbook).read().server
            except Exception as error:  # noqa: BLE001 - a failed request, whatever it was
                self._fail(error)
                continue
            with self._lock:
                self._served[server] += 1
                self._latest.append((time.monotonic(), server))

    def served(self) -> Counter[str]:
        """Return how many reads each server has answered so far."""
        with self._lock:
            return self._served.copy()

    def total(self) -> int:
        """Return how many reads were answered so far."""
        return self.served().total()

    def draw(self) -> Table:
        """Return a table of the present: who answers how many reads a second."""
        with self._lock:
            total, since = self._served.total(), time.monotonic() - 1
            rates = Counter(name for when, name in self._latest if when > since)
            names = sorted(self._served)
        table = grid("answered by", "reads in the last second", "")
        most = max(rates.values(), default=1)
        for name in names:
            table.add_row(name, str(rates[name]), bar(rates[name] / most))
        table.caption = f"{total} reads answered, {self.failed} failed"
        return table

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
