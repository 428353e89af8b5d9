"""What only several servers together show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sqlalchemy.pool import QueuePool

from flask_replicated._private import max_overflow_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flask_replicated.settings.config import Settings

    from .findings import Finding
    from .servers import Server
    from .visits import Look

__all__ = ["compare_looks"]


_MAX_SHOWN = 5  # binds that one finding names


def compare_looks(
    looks: Sequence[Look], settings: Settings, workers: int | None
) -> Iterator[Finding]:
    """Compare what the servers have said.

    Args:
        looks: What the visits have found.
        settings: The application's settings.
        workers: How many worker processes there are; None counts with one.
    """
    for primary in looks:
        if primary.server.role != "primary":
            continue
        replicas = [
            look
            for look in looks
            if look.server.role == "replica"
            and look.server.routed is primary.server.routed
        ]
        if settings.role_check:
            yield from _own_primary(primary, replicas)
        yield from _memory([primary, *replicas])
        yield from _schemas(primary, replicas)
    yield from _connections(looks, settings, workers)


# --- binds that lead to the primary ---


def _own_primary(primary: Look, replicas: Sequence[Look]) -> Iterator[Finding]:
    file = primary.facts.file
    own = [
        one for one in replicas if one.facts.own or (file and file == one.facts.file)
    ]
    alone = len(own) == len(replicas)
    for look in own:
        server = look.server
        if alone:
            what = "it leads to the primary, and no bind to a replica"
        else:
            what = "it leads to the primary, which gets no reads as a replica"
        report = server.error if alone else server.warning
        yield report(
            "primary",
            what,
            f"Let {server.setting} name a replica's server, or leave it out. Where one "
            "server plays both parts on purpose, set REPLICATED_ROLE_CHECK = False",
        )


def _memory(looks: Sequence[Look]) -> Iterator[Finding]:
    for look in looks:
        server = look.server
        if look.facts.file is not None and not look.facts.file:
            yield server.error(
                "memory",
                "it is a memory database: each worker process has another one, and "
                "it ends with the process",
                f"Let {server.setting} name a file, or a database server",
            )


# --- schema versions ---


def _schemas(primary: Look, replicas: Sequence[Look]) -> Iterator[Finding]:
    ours = primary.facts.versions
    for look in replicas:
        theirs = look.facts.versions
        if ours is None or theirs in {None, ours}:
            continue
        yield look.server.warning(
            "schema",
            f"its schema version (alembic_version) is {_listed(theirs)}, and the "
            f"primary's is {_listed(ours)}",
            "Wait until it has replayed the migration; if it does not, see whether it "
            "still replicates. A logical replica needs the migration run on itself",
        )


def _listed(versions: frozenset[str]) -> str:
    return ", ".join(map(repr, sorted(versions))) or "none"


# --- connections ---


def _connections(
    looks: Sequence[Look], settings: Settings, workers: int | None
) -> Iterator[Finding]:
    """Compare the connection pools of all workers with what each server has."""
    groups: dict[str, list[Look]] = {}
    for look in looks:
        if look.facts.identity is not None and not look.facts.pooled:
            groups.setdefault(look.facts.identity, []).append(look)
    for group in groups.values():
        limits = group[0].facts.connections
        if limits is None:
            continue
        free, most = limits
        used = [_most(look.server, settings, workers or 1) for look in group]
        needed = sum(used)
        if needed > free:
            yield _too_many(group, needed, free, most, workers)


def _most(server: Server, settings: Settings, workers: int) -> float:
    """Return how many connections all workers may have by one engine, at most."""
    pool = server.engine.pool
    if not isinstance(pool, QueuePool):
        return 0
    overflow = max_overflow_of(pool)
    if overflow < 0:
        return math.inf
    probed = server.role != "other" and settings.probe_interval > 0
    each = pool.size() + overflow + int(probed)
    limit = settings.max_pools
    if server.role == "replica" and limit is not None and server.routed is not None:
        members = len(server.routed.replicas.replica_pool.members)
        workers = math.ceil(workers * min(1.0, limit / members))
    return workers * each


def _too_many(
    group: Sequence[Look], needed: float, free: int, most: int, workers: int | None
) -> Finding:
    server = group[0].server
    named = [look.server.setting for look in group]
    more = len(named) - _MAX_SHOWN
    if more > 0:
        named[_MAX_SHOWN:] = [f"{more} more"]
    settings = " and ".join(named)
    who = "each worker process" if workers is None else f"{workers} worker processes"
    what = f"{who} may open {needed:.0f} connections to its server"
    if math.isinf(needed):
        what = f"{who} may open any number of connections (max_overflow = -1)"
        raised = "Set max_overflow"
    else:
        raised = (
            f"Set max_connections = {needed + most - free:.0f} on its server (on "
            "standbys first), or a smaller pool_size and max_overflow"
        )
    return server.warning(
        "connections",
        f"{what}, which has {free} for ordinary accounts (max_connections = {most})",
        f"{raised} in the engine options of {settings}",
    )
