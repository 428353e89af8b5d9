"""Discovers replicas in DNS, by a query that is repeated in the background.

An answer that names servers is believed. No answer, or an empty one, says nothing about
the servers: the known ones stay, as an outage of DNS must not become one of the
database.
"""

from __future__ import annotations

import importlib
import logging
import random
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from balancers.errors import error_text
from flask_replicated.errors import ConfigurationError
from flask_replicated.system.forks import in_this_process
from flask_replicated.system.log_lines import counted
from flask_replicated.system.threads import call_at_exit, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from flask_replicated.settings.config import DiscoverySource


__all__ = ["Discovery"]

logger = logging.getLogger("flask_replicated")

_LOOKUP_SECONDS = 5.0
"""Seconds that DNS may take to answer."""
_MISSES = 3
"""Answers in a row in which a server must be missing before it is removed."""
_OLDEST = 60.0
"""Seconds at most for which an answer counts once, as a cache may repeat it."""


class Address(NamedTuple):
    """Where a server is.

    Attributes:
        host: Its name or address.
        port: Its port, or None for the driver's own.
        weight: Its share relative to the others.
    """

    host: str
    port: int | None
    weight: int


class DNSAnswer(NamedTuple):
    """An answer of DNS.

    Attributes:
        addresses: The servers.
        ttl: Seconds for which a cache may repeat the same answer.
    """

    addresses: list[Address]
    ttl: float = 0.0


class DiscoveredReplicas(Protocol):
    """A bind's replicas, as far as discovery changes them."""

    def add_discovered(self, name: str, bind: Mapping[str, Any], weight: int) -> None:
        """Add a server that DNS names.

        Raises:
            ConfigurationError: It cannot be added.
        """

    def remove(self, name: str) -> None:
        """Remove a replica permanently.

        Raises:
            ConfigurationError: There is no replica of this name.
        """


class Discovery:
    """Keeps a fleet's replicas in step with DNS.

    Its thread starts with the first routed read of a process, or of a forked child.

    Args:
        name: The prefix of its replicas' names, such as ``'slave'``.
        source: What to query.

    Attributes:
        idle: Whether it should be started.

    Raises:
        ConfigurationError: dnspython is not installed.
    """

    def __init__(self, name: str, source: DiscoverySource) -> None:
        try:
            importlib.import_module("dns.resolver")
        except ImportError:
            raise ConfigurationError(
                f"REPLICATED_DISCOVERY[{name!r}]",
                source.url,
                "needs dnspython: pip install dnspython",
            ) from None
        self.idle = True
        self._name = name
        self._source = source
        self._lock = threading.Lock()
        self._stop: threading.Event | None = None
        self._known: dict[str, int] = {}
        self._misses: dict[str, int] = {}
        self._counts_from = 0.0
        self._failing = False
        call_at_exit(self, Discovery.stop)

    def start(self, fleet: DiscoveredReplicas) -> None:
        """Start, unless it runs already; stop when *fleet* is garbage-collected."""
        with self._lock:
            if not self.idle:
                return
            self.idle, stop = False, threading.Event()
            self._stop = stop
        owner = weakref.ref(fleet, lambda _: stop.set())
        name = f"discovery of {self._name}"
        if not start_thread(name, _run, weakref.ref(self), owner, stop, self._source):
            logger.warning("%r is not discovered: no thread could start", self._name)

    def stop(self) -> None:
        """Stop, and start again with the next routed read."""
        with self._lock:
            stop, self._stop, self.idle = self._stop, None, True
        if stop is not None:
            stop.set()

    def after_fork(self) -> None:
        """In a child process, forget the parent's thread."""
        self._lock = threading.Lock()
        self._stop = None
        self.idle = True

    def failed(self, error: Exception) -> None:
        """Log, once, that DNS does not answer."""
        if not self._failing:
            self._failing = True
            logger.warning(
                "REPLICATED_DISCOVERY[%r]: %s cannot be looked up, and what it "
                "named before stays, %s: %s",
                self._name,
                self._source.url.host,
                counted(len(self._known), "replica"),
                error_text(error),
            )

    def found(self, fleet: DiscoveredReplicas, answer: DNSAnswer) -> None:
        """Add the servers that are new, and remove those that are gone.

        A server is removed when it is missing from the third answer in a row: some DNS
        servers return a part of the records each time.
        """
        if self._failing:
            self._failing = False
            logger.warning("REPLICATED_DISCOVERY[%r]: DNS answers again", self._name)
        named = {self._name_of(address): address for address in answer.addresses}
        for name in self._missed_too_often(named, answer.ttl):
            self._remove(fleet, name)
        for name, address in named.items():
            if self._known.get(name, address.weight) != address.weight:
                self._remove(fleet, name)
            if name not in self._known:
                self._add(fleet, name, address)

    def _missed_too_often(self, named: Iterable[str], ttl: float) -> list[str]:
        """Count missing servers; return those that were missing for long enough."""
        missing = self._known.keys() - set(named)
        now = time.monotonic()
        # An answer that a cache repeats is not counted again.
        again = now < self._counts_from
        if not again:
            self._counts_from = now + min(ttl, _OLDEST)
        counted = {name: self._misses.get(name, 0) + (not again) for name in missing}
        self._misses = {n: times for n, times in counted.items() if times < _MISSES}
        return [name for name in counted if name not in self._misses]

    def _name_of(self, address: Address) -> str:
        host = f"[{address.host}]" if ":" in address.host else address.host
        port = "" if address.port is None else f":{address.port}"
        return f"{self._name}_{host}{port}"

    def _add(self, fleet: DiscoveredReplicas, name: str, address: Address) -> None:
        url = self._source.url.set(host=address.host, port=address.port)
        try:
            fleet.add_discovered(
                name, {**self._source.options, "url": url}, address.weight
            )
        except ConfigurationError as error:
            logger.error("REPLICATED_DISCOVERY[%r]: %s", self._name, error)  # noqa: TRY400 - the message is complete
        self._known[name] = address.weight

    def _remove(self, fleet: DiscoveredReplicas, name: str) -> None:
        del self._known[name]
        try:
            fleet.remove(name)
        except ConfigurationError:
            pass  # the application has removed it


def _run(
    discovery: Callable[[], Discovery | None],
    owner: Callable[[], DiscoveredReplicas | None],
    stop: threading.Event,
    source: DiscoverySource,
) -> None:
    """Query DNS and tell until stopped; hold no reference while waiting."""
    # A greenlet goes on in a forked child, which has its own.
    in_its_process = in_this_process()
    while not stop.is_set() and in_its_process():
        found: DNSAnswer | Exception
        try:
            found = _query(source)
        except Exception as error:  # noqa: BLE001 - it is logged, and this goes on
            found = error
        told, fleet = discovery(), owner()
        if told is None or fleet is None or stop.is_set():
            return
        if not in_its_process():
            return
        try:
            if isinstance(found, Exception):
                told.failed(found)
            else:
                told.found(fleet, found)
        except Exception:
            logger.exception("the discovery of replicas has failed and goes on")
        del told, fleet
        # Spread, as many workers start at the same moment.
        stop.wait(source.every * random.uniform(0.8, 1.2))  # noqa: S311 - no secret


def _query(source: DiscoverySource) -> DNSAnswer:
    """Query DNS.

    Raises:
        Exception: There is no answer, or no server in it.
    """
    # Imported here, and by name for mypy: dnspython is optional.
    dns: Any = importlib.import_module("dns.resolver")
    host = str(source.url.host)

    def ask(kind: str) -> Any:
        resolver = dns.get_default_resolver()
        return resolver.resolve(host, kind, search=True, lifetime=_LOOKUP_SECONDS)

    if host.startswith("_"):
        records = ask("SRV")
        return DNSAnswer(_of_services(list(records)), records.rrset.ttl)
    try:
        records = ask("A")
    except dns.NoAnswer:
        records = ask("AAAA")
    addresses = [Address(record.address, source.url.port, 1) for record in records]
    return DNSAnswer(addresses, records.rrset.ttl)


def _of_services(records: list[Any]) -> list[Address]:
    """Return the servers of the best priority; the others are for its failure."""
    able = [record for record in records if record.target.to_text() != "."]
    if not able:
        raise LookupError("the service is said to be not available")
    first = min(record.priority for record in able)
    return [
        Address(
            record.target.to_text(omit_final_dot=True), record.port, record.weight or 1
        )
        for record in able
        if record.priority == first
    ]
