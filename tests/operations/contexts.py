"""Where an operation can find itself."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask_replicated import using_master, using_slave

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

READING = "a request that reads"
PRIMARY = "on the primary"
WRITTEN = "after a write"
MASTER = "`using_master()`"
SLAVE = "`using_slave()`"
COLUMNS = (READING, PRIMARY, WRITTEN, MASTER, SLAVE)


@dataclass(frozen=True)
class Context:
    """One situation.

    Attributes:
        name: What the table calls it.
        column: The column whose cells must be true of it.
        method: The HTTP method, or None outside a request.
        path: The page that is asked for.
        block: Entered around the operation.
        written: Whether the request has committed a write before.
        pinned: Whether the client has just written, and has a time pin.
        site: Which application serves.
    """

    name: str
    column: str
    method: str | None = "GET"
    path: str = "/plain"
    block: Callable[[], AbstractContextManager[None]] = nullcontext
    written: bool = False
    pinned: bool = False
    site: str = "usual"


CONTEXTS = (
    Context("`GET`", READING),
    Context("`HEAD`", READING, method="HEAD"),
    Context("`POST`, `@use_slave_database`", READING, method="POST", path="/slave"),
    Context(
        "`POST`, `REPLICATED_IS_READ` says `True`",
        READING,
        method="POST",
        path="/plain?reads=yes",
    ),
    Context("`POST`", PRIMARY, method="POST"),
    Context("`GET`, `@use_master_database`", PRIMARY, path="/master"),
    Context("`GET`, `@changes_database`", PRIMARY, path="/changes"),
    Context(
        "`GET`, `REPLICATED_IS_READ` says `False`", PRIMARY, path="/plain?reads=no"
    ),
    Context("`GET` of a client with a time pin", PRIMARY, pinned=True),
    Context(
        "`GET` of an endpoint whose write a replica has refused",
        PRIMARY,
        path="/learnt",
    ),
    Context("`GET`, `AUTO_READ_ON_SLAVE` is `False`", PRIMARY, site="switched off"),
    Context("outside a request", PRIMARY, method=None),
    Context("`GET` that has written", WRITTEN, written=True),
    Context("`POST` that has written", WRITTEN, method="POST", written=True),
    Context("`GET`, inside `using_master()`", MASTER, block=using_master),
    Context("`GET`, inside `using_slave()`", SLAVE, block=using_slave),
    Context("`POST`, inside `using_slave()`", SLAVE, method="POST", block=using_slave),
    Context(
        "`GET` that has written, inside `using_slave()`",
        SLAVE,
        written=True,
        block=using_slave,
    ),
    Context(
        "outside a request, inside `using_slave()`",
        SLAVE,
        method=None,
        block=using_slave,
    ),
)
