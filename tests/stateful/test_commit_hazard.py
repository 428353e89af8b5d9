"""A replica that dies inside a transaction, in every shape that one can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, update

from flask_replicated import using_master
from tests.stateful.conftest import KINDS
from tests.stateful.worlds import RoutedWorld, routed_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.stateful.servers import Pair

    Shape = Callable[[RoutedWorld], None]

pytestmark = pytest.mark.parametrize("pair", KINDS, indirect=True)

JOIN_MODES = (
    "conditional_savepoint",
    "rollback_only",
    "control_fully",
    "create_savepoint",
)


def read(world: RoutedWorld) -> None:
    """Read books, so that a replica has a part in the transaction."""
    served = world.served
    world.session.scalars(select(world.book)).all()
    assert world.served > served


def write(world: RoutedWorld) -> None:
    """Add an author and flush it."""
    world.session.add(world.author(name="written"))
    world.session.flush()


def lose(world: RoutedWorld) -> None:
    """Lose every connection to a replica; there is one at least."""
    losses = world.mirrored.losses
    world.mirrored.lose()
    assert world.mirrored.losses == losses + 1


def read_write_lose(world: RoutedWorld) -> None:
    """Lose it between the write and the end."""
    read(world)
    write(world)
    lose(world)


def read_lose_write(world: RoutedWorld) -> None:
    """Lose it between the read and the write."""
    read(world)
    lose(world)
    write(world)


def write_in_savepoint(world: RoutedWorld) -> None:
    """Lose it inside a savepoint that is released."""
    read(world)
    with world.session.begin_nested():
        read(world)
        write(world)
        lose(world)


def savepoint_left_open(world: RoutedWorld) -> None:
    """Lose it while a savepoint is open, and leave that to the end."""
    world.session.begin_nested()
    read(world)
    write(world)
    lose(world)


def savepoints_left_open(world: RoutedWorld) -> None:
    """Lose it while two savepoints are open, and leave both to the end."""
    world.session.begin_nested()
    world.session.begin_nested()
    read(world)
    write(world)
    lose(world)


def savepoint_rolled_back(world: RoutedWorld) -> None:
    """Lose it inside a savepoint that is rolled back, then write."""
    nested = world.session.begin_nested()
    read(world)
    lose(world)
    nested.rollback()
    write(world)


def read_after_savepoint(world: RoutedWorld) -> None:
    """Lose it inside a savepoint, and read again when that was rolled back."""
    nested = world.session.begin_nested()
    read(world)
    lose(world)
    nested.rollback()
    assert len(world.session.scalars(select(world.book)).all()) == 3
    write(world)


def lose_at_commit(world: RoutedWorld) -> None:
    """Lose it at the very moment when the primary commits."""
    read(world)
    write(world)
    world.arm("primary", "commit")


def lose_at_end_of_read(world: RoutedWorld) -> None:
    """Lose it at the very moment when its own transaction ends."""
    read(world)
    write(world)
    world.arm("replica", "rollback")


def lose_in_flush(world: RoutedWorld) -> None:
    """Lose it in the middle of a flush."""
    read(world)
    world.arm("primary", "before_cursor_execute")
    write(world)


SHAPES = [
    read_write_lose,
    read_lose_write,
    write_in_savepoint,
    savepoint_left_open,
    savepoints_left_open,
    savepoint_rolled_back,
    read_after_savepoint,
    lose_at_commit,
    lose_at_end_of_read,
    lose_in_flush,
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)


@pytest.fixture
def world(pair: Pair) -> Iterator[RoutedWorld]:
    """Give a routed application."""
    yield from open_world(pair)


def open_world(pair: Pair, *, twophase: bool = False) -> Iterator[RoutedWorld]:
    """Give a routed application, and look at what it leaves."""
    world = routed_world(pair, twophase=twophase)
    yield world
    assert world.written == []
    assert world.checked_out() == {}
    world.dispose()


def in_request(world: RoutedWorld, *steps: Callable[[RoutedWorld], Any]) -> None:
    """Take some steps in one GET."""
    world.start("GET")
    try:
        for step in steps:
            world.run(step)
    finally:
        world.end()
    assert world.checked_out() == {}


def commit(world: RoutedWorld) -> None:
    """Commit."""
    world.session.commit()


def roll_back(world: RoutedWorld) -> None:
    """Roll back."""
    world.session.rollback()


def written(pair: Pair) -> int:
    """Return how many of the authors written here are committed."""
    routed, _ = pair.rows()
    return [name for _, name in routed["author"]].count("written")


@shapes
def test_commits(pair: Pair, world: RoutedWorld, shape: Shape) -> None:
    """What is committed is there, each time."""
    for run in range(1, pair.runs + 1):
        in_request(world, shape, commit)
        assert written(pair) == run
    assert world.mirrored.losses == pair.runs


@shapes
def test_rolls_back(pair: Pair, world: RoutedWorld, shape: Shape) -> None:
    """What is rolled back is not there, and neither is what is left to its fate."""
    for _ in range(pair.runs // 4):
        in_request(world, shape, roll_back)
        in_request(world, shape)
    assert written(pair) == 0


def test_block_commits(pair: Pair, world: RoutedWorld) -> None:
    """A begin() block commits what was written in it, whatever its replica does."""

    def block(world: RoutedWorld) -> None:
        with world.session.begin():
            read_write_lose(world)

    for run in range(1, pair.runs + 1):
        in_request(world, block)
        assert written(pair) == run


def test_keeps_one_connection_to_the_primary(pair: Pair, world: RoutedWorld) -> None:
    """Where the primary stands in for replicas, writes stay on one connection."""

    def stand_in(world: RoutedWorld) -> None:
        names = select(world.author.name)
        with using_master():
            world.session.execute(names).all()
        world.session.execute(names).all()
        with world.session.begin_nested():
            write(world)
        renamed = world.session.execute(update(world.author).values(name="written"))
        assert renamed.rowcount == 4

    world.down = True
    in_request(world, stand_in, commit)
    assert written(pair) == 4


@shapes
def test_commits_in_two_phases(
    pair: Pair, shape: Shape, request: pytest.FixtureRequest
) -> None:
    """In two phases the primary's part is prepared and committed all the same."""
    if request.node.callspec.params["pair"] == "sqlite":
        pytest.skip("SQLite does not commit in two phases")
    if shape is lose_at_commit:
        pytest.skip("the primary does not come to this moment in two phases")
    for world in open_world(pair, twophase=True):
        for run in range(1, pair.runs + 1):
            in_request(world, shape, commit)
            assert written(pair) == run


@pytest.mark.parametrize("moment", ["prepare_twophase", "commit_twophase"])
def test_lost_between_two_phases(
    pair: Pair, moment: str, request: pytest.FixtureRequest
) -> None:
    """A replica that is lost in the middle of both phases changes nothing."""
    if request.node.callspec.params["pair"] == "sqlite":
        pytest.skip("SQLite does not commit in two phases")

    def arm(world: RoutedWorld) -> None:
        world.arm("primary", moment)

    for world in open_world(pair, twophase=True):
        for run in range(1, pair.runs + 1):
            in_request(world, read, write, arm, commit)
            assert written(pair) == run
        assert world.mirrored.losses == pair.runs


@pytest.mark.parametrize("mode", JOIN_MODES)
def test_joins_external_connections(pair: Pair, world: RoutedWorld, mode: str) -> None:
    """A session on the caller's own connections leaves their end to the caller."""

    def join(world: RoutedWorld) -> None:
        routed: Any = world.db.engine
        session = world.db.session.session_factory(join_transaction_mode=mode)
        with routed.primary.connect() as primary, routed.replicas.connect() as replica:
            outer, looking = primary.begin(), replica.begin()
            session.execute(select(world.book), bind_arguments={"bind": replica})
            row = insert(world.author).values(name="written")
            session.execute(row, bind_arguments={"bind": primary})
            lose(world)
            session.commit()
            session.close()
            looking.close()
            # Only this mode hands the end of the caller's transaction over.
            assert outer.is_active is (mode != "control_fully")
            if outer.is_active:
                outer.commit()

    for run in range(1, pair.runs + 1):
        in_request(world, join)
        assert written(pair) == run


@pytest.mark.parametrize("mode", JOIN_MODES)
def test_joins_a_replica_of_the_caller(
    pair: Pair, world: RoutedWorld, mode: str
) -> None:
    """A session that reads on the caller's replica commits to its own primary."""

    def join(world: RoutedWorld) -> None:
        routed: Any = world.db.engine
        factory = world.db.session.session_factory
        with (
            routed.replicas.connect() as replica,
            replica.begin(),
            factory(join_transaction_mode=mode) as session,
        ):
            session.execute(select(world.book), bind_arguments={"bind": replica})
            session.add(world.author(name="written"))
            session.flush()
            lose(world)
            session.commit()

    for run in range(1, pair.runs + 1):
        in_request(world, join)
        assert written(pair) == run
