"""An application that serves in a process and in its forked child, in turns.

Run with ``told`` or ``untold`` and the URLs of the primary and of the standbys, it
prints one JSON object. An untold fork is the C library's own, past Python's hooks, as
uWSGI makes it. Where that child hangs, in a lock of the C library or of Python whose
owner is a thread that only the parent has, this exits with ``HUNG``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from tests.postgres.support import WHO, make_site

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.postgres.support import Backend, Site

READS = 6
HUNG = 75
_LONGEST = 20  # seconds that the child may take
FORKS: dict[str, Callable[[], int]] = {
    "told": os.fork,
    # With the lock of the interpreter held, so that the child has it.
    "untold": ctypes.PyDLL(None).fork,
}


def serve(site: Site, item: str) -> dict[str, list[object]]:
    """Read from every server, write one item, and return the backends in use."""
    backends: set[Backend] = set()
    site.between = backends.add
    servers = [site.get().servers[0] for _ in range(READS)]
    site.post(item)
    return {"servers": [*sorted(servers)], "backends": [*sorted(backends)]}


def ask_directly(site: Site) -> list[object]:
    """Return the backends of connections that no route leads to."""
    bind = routed(site)
    found: list[object] = []
    for engine in (bind.replicas.real, bind.real):
        with engine.connect() as connection:
            found.append([*connection.execute(WHO).one()])
    return found


def routed(site: Site) -> Any:
    """Return the default bind with its replicas."""
    return site.app.extensions["replicated"].state(site.app).routes[None]


def main(how: str, primary: str, *standbys: str) -> None:
    """Serve in the parent, then in a child, then in the parent again."""
    binds = {f"slave_{number}": url for number, url in enumerate(standbys, start=1)}
    site = make_site(primary, binds)
    before = serve(site, "before")
    read, write = os.pipe()
    inherited = routed(site).monitor._loop
    child = FORKS[how]()
    if not child:
        signal.alarm(_LONGEST)
        with os.fdopen(write, "w") as pipe:
            direct = ask_directly(site)
            served = serve(site, "child")
            own = routed(site).monitor._loop not in (inherited, None)
            json.dump({**served, "direct": direct, "probes": own}, pipe)
        # As a worker ends: objects are cleaned up, exit functions run.
        sys.exit()
    os.close(write)
    together = serve(site, "together")
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if how == "untold" and status == signal.SIGALRM:
        sys.exit(HUNG)
    report = {"child": json.loads(said)}
    after = serve(site, "after")
    report |= {"before": before, "together": together, "after": after}
    print(json.dumps({**report, "status": status}))  # noqa: T201 - it is the result
    site.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
