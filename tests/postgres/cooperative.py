"""An application whose threads are greenlets, with replicas that die and hang.

Run with the URLs of the primary and of two standbys, it prints what it finds as one
JSON object on each line: once it serves, and at its end. Between the two somebody has
to kill the second standby.
"""

# ruff: noqa: E402 - everything that is imported later must already find greenlets
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json
import socket
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from examples.cluster import wait_until
from tests.postgres.support import make_site

if TYPE_CHECKING:
    from tests.postgres.support import Site

AT_ONCE = 12


def probe_of(name: str) -> threading.Thread | None:
    """Return the thread of a probe of a replica, if there is one."""
    wanted = f"flask_replicated probe of {name}"
    return next((one for one in threading.enumerate() if one.name == wanted), None)


def served_meanwhile(site: Site) -> bool:
    """Return whether a request is answered while a probe waits for an answer."""
    wait_until(lambda: probe_of("slave_3") is not None, "a probe of the silent one")
    probe = probe_of("slave_3")
    site.get()
    return probe is not None and probe_of("slave_3") is probe


def tell(**found: object) -> None:
    """Print what was found."""
    print(json.dumps(found), flush=True)  # noqa: T201 - it is the result


def storm(site: Site) -> Counter[str]:
    """Return who serves many requests that all begin, and connect, at once."""
    barrier = threading.Barrier(AT_ONCE)

    def ask(_: int) -> str:
        barrier.wait()
        return site.get().servers[0]

    with ThreadPoolExecutor(AT_ONCE) as greenlets:
        return Counter(greenlets.map(ask, range(AT_ONCE)))


def main(primary: str, *standbys: str) -> None:
    """Serve while one replica says nothing from the start and another dies."""
    silent = socket.create_server(("127.0.0.1", 0))
    driver = primary.partition(":")[0]
    urls = [*standbys, f"{driver}://postgres@127.0.0.1:{silent.getsockname()[1]}/x"]
    binds = {f"slave_{number}": url for number, url in enumerate(urls, start=1)}
    site = make_site(
        primary,
        binds,
        REPLICATED_PROBE_INTERVAL=0.2,
        REPLICATED_CONNECT_TIMEOUT=1,
        REPLICATED_MAX_CONNECTING=1,
    )
    first = storm(site)
    wait_until(lambda: site.live() == {"slave_1", "slave_2"}, "slave_3 to be out")
    meanwhile = served_meanwhile(site)
    tell(first=first, meanwhile=meanwhile)
    wait_until(lambda: site.live() == {"slave_1"}, "slave_2 to be out", timeout=20)
    tell(second=storm(site), held=site.checked_out())
    # The monitor goes on probing until the process ends.


if __name__ == "__main__":
    main(*sys.argv[1:])
