"""Write the table in ``docs/routing.md`` anew: ``python -m tests.operations``.

Rows of a server that is not there stay as they are.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from examples.cluster import Cluster
from tests.operations import servers
from tests.operations.catalogue import operations
from tests.operations.table import publish, published, render, row_of

if TYPE_CHECKING:
    from tests.operations.world import World


def observed(world: World) -> dict[str, list[str]]:
    """Return the rows that this server decides."""
    chosen = [op for op in operations() if op.servers[0] == world.server]
    return {
        op.title: [op.title, *op.intended, op.why] if op.intended else row_of(world, op)
        for op in chosen
    }


def main() -> None:
    """Observe every operation, and publish the table."""
    rows = published()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        rows |= observed(stack.enter_context(servers.sqlite(folder)))
        cluster = stack.enter_context(Cluster(standbys=2))
        rows |= observed(stack.enter_context(servers.postgresql(cluster)))
        if servers.mariadb_answers():
            rows |= observed(stack.enter_context(servers.mariadb()))
    publish(render(rows))


if __name__ == "__main__":
    main()
