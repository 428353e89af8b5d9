"""A table that a standby can no longer read to its end, as from a broken disk."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster, Standby

__all__ = ["ROWS", "create_pages", "damaged"]

ROWS: Final = 100
"""How many rows the table ``page`` has, numbered from 1, each with a page to itself."""

_PAGE: Final = 8192
_BODY: Final = "repeat('x', 4100)"
_FORGET: Final = "select pg_buffercache_evict_relation('page')"


def create_pages(cluster: Cluster) -> None:
    """Create the table anew, and wait until every standby has it."""
    for sql in (
        "create extension if not exists pg_buffercache",
        "drop table if exists page",
        "create table page (id int primary key, body text not null)",
        # One word of it is looked for, never the whole: stored as it is.
        "alter table page alter body set storage plain",
        f"insert into page select n, {_BODY} from generate_series(1, {ROWS}) n",
        # Or a read might write to it, to note that its rows are old.
        "vacuum (freeze) page",
        # The commit that sends what vacuum has logged, and did not hurry to send.
        "comment on table page is 'may be damaged'",
    ):
        cluster.primary.execute(sql)
    cluster.wait_replicated()


@contextlib.contextmanager
def damaged(standby: Standby) -> Iterator[None]:
    """Cut the table's file in two on one standby, and put it back at the end.

    The server goes on. A read of the earlier rows finds them; one of the later rows
    raises "could not read blocks" (XX001) over a connection that lives. Nobody may
    write to the table meanwhile, and the standby has to be up at the end.
    """
    path = standby.execute("select pg_relation_filepath('page')")[0][0]
    file = standby.data / path
    # Pages in memory would hide the damage. The first time writes what was changed.
    standby.execute(_FORGET)
    whole = file.read_bytes()
    os.truncate(file, len(whole) // _PAGE // 2 * _PAGE)
    try:
        standby.execute(_FORGET)
        yield
    finally:
        with file.open("r+b") as kept:
            kept.write(whole)
