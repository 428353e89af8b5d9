"""Run one operation in one context and say who executed it."""

from __future__ import annotations

from inspect import isgeneratorfunction
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from flask_replicated import StaleReadError, WriteOnReplicaError
from flask_replicated.replica.failures import is_read_only_error
from tests.operations.models import Author

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.operations.catalogue import Operation
    from tests.operations.contexts import Context
    from tests.operations.world import World

_SHOWN = {
    (): "no server",
    ("primary",): "primary",
    ("replica",): "replica",
    ("other",): "its bind",
}


class Cell(NamedTuple):
    """What an operation did in one context.

    Attributes:
        outcome: Who executed it, or ``'refused'``, or ``'repaired'``.
        latched: Whether the rest of the request moved to the primary; None where
            it was there already, so that nobody can tell.
    """

    outcome: str
    latched: bool | None

    def __str__(self) -> str:
        return f"{self.outcome}, latch" if self.latched else self.outcome


def observe(world: World, operation: Operation, context: Context) -> Cell:
    """Return who executed an operation in a context."""
    cells: list[Cell] = []
    world.act = lambda: cells.append(_page(world, operation, context))
    if context.method is None:
        with world.app.app_context():
            world.act()
    else:
        app = world.apps[context.site]
        client = world.pinned if context.pinned else app.test_client()
        world.visit(client, context.path, context.method)
    world.forget_writers()
    (cell,) = cells
    return cell


def _page(world: World, operation: Operation, context: Context) -> Cell:
    if context.written:
        world.write()
    # It is the same for every operation; on the primary it settles nothing.
    before = world.reads.get(context.name)
    if before != "primary":
        before = world.reads[context.name] = _role_of_a_read(world)
    outcome = _operate(world, operation, context)
    world.session.rollback()
    latched = _role_of_a_read(world) == "primary" if before == "replica" else None
    return Cell(outcome, latched)


def _role_of_a_read(world: World) -> str:
    world.seen.clear()
    world.session.scalars(select(Author.id).limit(1)).all()
    world.session.rollback()
    (role,) = {seen.role for seen in world.seen}
    return role


def _operate(world: World, operation: Operation, context: Context) -> str:
    run = _prepared(world, operation)
    world.seen.clear()
    try:
        with context.block():
            run()
    except (WriteOnReplicaError, StaleReadError):
        return "refused"
    except DBAPIError as error:
        if not is_read_only_error(error):
            raise
        return "refused"
    return _who(world)


def _prepared(world: World, operation: Operation) -> Callable[[], object]:
    if not isgeneratorfunction(operation.run):
        return lambda: operation.run(world)
    steps = operation.run(world)
    next(steps)
    return lambda: next(steps, None)


def _who(world: World) -> str:
    executed = [seen for seen in world.seen if seen.sql] or world.seen
    roles = tuple(dict.fromkeys(seen.role for seen in executed))
    if roles == ("replica", "primary") and executed[0].sql == executed[1].sql:
        return "repaired"
    return _SHOWN.get(roles) or " then ".join(roles)
