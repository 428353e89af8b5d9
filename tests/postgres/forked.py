"""An application that serves in a process and in its forked child, in turns.

Run with the URLs of the primary and of the standbys, it prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from tests.postgres.support import make_site

if TYPE_CHECKING:
    from tests.postgres.support import Backend, Site

READS = 6


def serve(site: Site, item: str) -> dict[str, list[object]]:
    """Read from every server, write one item, and return the backends in use."""
    backends: set[Backend] = set()
    site.between = backends.add
    servers = [site.get().servers[0] for _ in range(READS)]
    site.post(item)
    return {"servers": [*sorted(servers)], "backends": [*sorted(backends)]}


def main(primary: str, *standbys: str) -> None:
    """Serve in the parent, then in a child, then in the parent again."""
    binds = {f"slave_{number}": url for number, url in enumerate(standbys, start=1)}
    site = make_site(primary, binds)
    before = serve(site, "before")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with os.fdopen(write, "w") as pipe:
            json.dump(serve(site, "child"), pipe)
        # As a worker ends: objects are cleaned up, exit functions run.
        sys.exit()
    os.close(write)
    together = serve(site, "together")
    with os.fdopen(read) as pipe:
        report = {"child": json.load(pipe)}
    _, status = os.waitpid(child, 0)
    after = serve(site, "after")
    report |= {"before": before, "together": together, "after": after}
    print(json.dumps({**report, "status": status}))  # noqa: T201 - it is the result
    site.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
