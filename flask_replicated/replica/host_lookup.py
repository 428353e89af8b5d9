"""DNS lookup of database hosts, with a timeout.

No driver's connect timeout covers it. The system's resolver waits for a silent name
server for tens of seconds, and cannot be interrupted. So a thread waits for it, one for
each name at a time, and a connect waits for that thread no longer than its timeout.
Each connect asks again. Without an answer in time, drivers that use libpq get the
latest known addresses, as they accept addresses and then look nothing up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from flask_replicated.system.forks import in_this_process
from flask_replicated.system.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import Dialect

__all__ = ["HostLookup", "poll_in_loop"]

_LIBPQ = frozenset({"psycopg", "psycopg_async", "psycopg2"})
_UNKNOWN_HOST = 2005  # the error code of MySQL's drivers
_POLL = 0.02
"""Seconds between two polls in an event loop."""
_SILENT = "its name server has not answered in time (REPLICATED_CONNECT_TIMEOUT)"
_OLDEST = 600.0
"""Seconds for which an answer is used while the name server is silent."""
_MANY = 100  # names that are kept


class _Lookup:
    """The lookup of one name, in a thread.

    Attributes:
        in_its_process: Whether this is the process that does it: a forked child has
            none of its parent's threads.
        found: The name's addresses, or why there are none; empty until that is known.
    """

    def __init__(self, name: str) -> None:
        self.in_its_process = in_this_process()
        self.found: list[str] | OSError = []
        self._name = name
        self._began = time.monotonic()
        # By its module's name, as it may be gevent's by now.
        self._done = threading.Event()

    def run(self, pending: dict[str, _Lookup], known: dict[str, _Known]) -> None:
        """Ask the system's resolver.

        Args:
            pending: The lookups under way, from which this one removes itself.
            known: Receives the addresses.
        """
        try:
            answers = socket.getaddrinfo(self._name, None, type=socket.SOCK_STREAM)
            self.found = list(dict.fromkeys(str(one[4][0]) for one in answers))
            if len(known) >= _MANY:
                known.clear()  # a program that generates names
            known[self._name] = _Known(self.found, time.monotonic())
        except OSError as error:
            self.found = error
        except Exception as error:  # noqa: BLE001 - such as for an invalid name
            self.found = OSError(str(error))
        finally:
            if pending.get(self._name) is self:
                del pending[self._name]
            self._done.set()

    def wait(self, until: float, *, in_loop: bool) -> list[str] | OSError:
        """Return what was found by then; empty if the lookup has not ended.

        A caller does not wait where the lookup has already taken longer than it would
        wait.
        """
        now = time.monotonic()
        until = min(until, self._began + until - now)
        if not in_loop:
            self._done.wait(max(0.0, until - now))
        elif not self._done.is_set():
            poll_in_loop(self._done.is_set, until)
        return self.found


class _Known(NamedTuple):
    """The addresses of a name, and when they were looked up."""

    addresses: list[str]
    at: float


class _Host(NamedTuple):
    """A host of a driver's connect arguments, and its port."""

    name: str
    port: str


class HostLookup:
    """Looks up the names of one engine's hosts."""

    def __init__(self) -> None:
        self._pending: dict[str, _Lookup] = {}
        self._known: dict[str, _Known] = {}

    def look_up(
        self, dialect: Dialect, arguments: dict[str, Any], until: float
    ) -> None:
        """Look up the hosts of a driver's connect arguments, if they are names.

        Of several hosts, those that cannot be looked up are left out.

        Args:
            dialect: The engine's.
            arguments: The connect arguments; changed in place.
            until: The deadline, by the monotonic clock.

        Raises:
            OperationalError: The driver's, if no name is known by then.
        """
        hosts = _hosts(dialect, arguments)
        lookups = {
            host.name: lookup
            for host in hosts
            if _is_name(host.name) and (lookup := self._begin(host.name)) is not None
        }
        if not lookups:
            return
        found: dict[str, list[str]] = {}
        unknown: dict[str, object] = {}
        for name, lookup in lookups.items():
            answer = lookup.wait(until, in_loop=dialect.is_async)
            if dialect.driver in _LIBPQ and _is_silence(answer):
                answer = self._latest(name) or answer
            if isinstance(answer, OSError) or not answer:
                unknown[name] = answer or _SILENT
            else:
                found[name] = answer
        known = [host for host in hosts if host.name not in unknown]
        if not known:
            raise _error(dialect, unknown)
        if dialect.driver in _LIBPQ:
            arguments.update(_addressed(known, found))

    def _latest(self, name: str) -> list[str]:
        known = self._known.get(name)
        fresh = known is not None and time.monotonic() - known.at < _OLDEST
        return known.addresses if known is not None and fresh else []

    def _begin(self, name: str) -> _Lookup | None:
        """Return a name's lookup, started if there is none; None without threads."""
        mine = _Lookup(name)
        lookup = self._pending.setdefault(name, mine)
        if not lookup.in_its_process():
            lookup = self._pending[name] = mine
        if lookup is mine:
            started = start_thread(
                f"lookup of {name}", mine.run, self._pending, self._known
            )
            if not started:  # the driver does the lookup
                self._pending.pop(name, None)
                return None
        return lookup


def poll_in_loop(ready: Callable[[], bool], until: float) -> bool:
    """Wait in a coroutine of SQLAlchemy's, without blocking its event loop.

    Args:
        ready: Returns whether the wait is over.
        until: The deadline, by the monotonic clock.

    Returns:
        Whether it was ready in time.
    """
    # Imported here: only async engines need greenlet.
    from sqlalchemy.util import await_only  # noqa: PLC0415

    while time.monotonic() < until:
        await_only(asyncio.sleep(_POLL))
        if ready():
            return True
    return False


def _hosts(dialect: Dialect, arguments: Mapping[str, Any]) -> list[_Host]:
    """Return the hosts in a driver's connect arguments."""
    if arguments.get("hostaddr") or arguments.get("unix_socket"):
        return []
    names = str(arguments.get("host") or "")
    if dialect.driver not in _LIBPQ:
        return [_Host(names, "")]
    hosts, ports = names.split(","), str(arguments.get("port") or "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    # If the numbers differ, the driver reports it.
    same = len(hosts) == len(ports)
    return list(map(_Host, hosts, ports)) if same else []


def _is_name(host: str) -> bool:
    """Whether a host may need a DNS lookup."""
    if not host or host == "localhost" or host.startswith(("/", "@")) or "\\" in host:
        return False
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


def _is_silence(answer: list[str] | OSError) -> bool:
    """Whether no name server has answered, even if the resolver has given up."""
    if isinstance(answer, OSError):
        return answer.errno == socket.EAI_AGAIN
    return not answer


def _addressed(hosts: list[_Host], found: Mapping[str, list[str]]) -> dict[str, str]:
    """Return connect arguments for libpq: each host once for each of its addresses."""
    told = [
        (host.name, address, host.port)
        for host in hosts
        for address in found.get(host.name, [""])
    ]
    names, addresses, ports = (",".join(column) for column in zip(*told, strict=True))
    more = {"port": ports} if any(host.port for host in hosts) else {}
    return {"host": names, "hostaddr": addresses, **more}


def _error(dialect: Dialect, unknown: Mapping[str, object]) -> BaseException:
    """Return the driver's error that says why a host is not known."""
    said = "; ".join(
        f"the host name {name!r} cannot be looked up: {why}"
        for name, why in unknown.items()
    )
    more = (_UNKNOWN_HOST,) if dialect.name in {"mysql", "mariadb"} else ()
    error: BaseException = dialect.loaded_dbapi.OperationalError(*more, said)
    return error
