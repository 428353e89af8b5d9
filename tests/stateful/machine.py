"""A routed session and a plain one take the same steps and must agree."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from tests.stateful import actions
from tests.stateful.servers import FRESH, LONG
from tests.stateful.worlds import MOMENTS, plain_world, routed_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stateful.servers import Pair
    from tests.stateful.worlds import RoutedWorld, World

__all__ = ["STEPS", "PairMachine", "drive"]

ENDINGS = (actions.flush, actions.commit, actions.roll_back, actions.end_nested)
STEPS: Counter[str] = Counter()
"""What has been driven so far in this process, for the summary."""

NUMBERS = st.integers(0, 8)
READ = st.sampled_from(actions.READING)
WRITE = st.sampled_from(actions.WRITING)
LOSS = st.just(actions.lose)
BLOCK = st.lists(st.tuples(READ | LOSS | WRITE, NUMBERS), min_size=1, max_size=4)
MOMENT = st.none() | st.tuples(
    st.sampled_from(["primary", "replica"]), st.sampled_from(MOMENTS)
)
METHODS = st.sampled_from(["GET", "GET", "POST"])


class PairMachine(RuleBasedStateMachine):
    """The steps of several requests, with replicas lost at any moment.

    Attributes:
        pair: The databases, which every run finds empty.
        plain: The application without replicas.
        routed: The application with replicas.
    """

    pair: ClassVar[Pair]
    plain: ClassVar[World]
    routed: ClassVar[RoutedWorld]

    def __init__(self) -> None:
        super().__init__()
        self.dirty = self.snapshot = False
        STEPS["runs"] += 1

    # --- taking one step in both worlds ---------------------------------------

    def both(self, step: Callable[..., Any], *args: Any) -> bool:
        """Take a step in both worlds and compare; return whether it succeeded."""
        STEPS["steps"] += 1
        how, expected = self.plain.run(partial(actions.outcome, step), *args)
        same, happened = self.routed.run(partial(actions.outcome, step), *args)
        if how == "raised":
            STEPS["raised in both"] += 1
        if type(expected) is not type(happened) and self._may_be_lost(step, happened):
            STEPS["reads given up"] += 1
            self._next_request("GET")
            return False
        if isinstance(happened, Exception) and how == "returned":
            raise happened
        assert how == same, (step.__name__, args, expected, happened)
        what = (step.__name__, args, expected, happened)
        if how == "raised":
            expected, happened = type(expected), type(happened)
        assert expected == happened, what
        return how == "returned"

    def _may_be_lost(self, step: Callable[..., Any], happened: object) -> bool:
        """Whether a read may have been given up: it had a snapshot to keep."""
        # The second is how every later use of a lost connection is refused.
        lost = isinstance(happened, DBAPIError) and happened.connection_invalidated
        lost = lost or isinstance(happened, PendingRollbackError)
        return lost and not self.pair.continues and step not in ENDINGS

    def _next_request(self, method: str) -> None:
        for world in (self.plain, self.routed):
            world.end()
        assert self.routed.checked_out() == {}
        assert self.plain.checked_out() == {}
        for world in (self.plain, self.routed):
            world.start(method)
        self.routed.down = False
        self.dirty = self.snapshot = False

    def _write(self, step: Callable[..., Any], *args: Any) -> None:
        self.dirty = True
        self.both(step, *args)

    # --- steps ----------------------------------------------------------------

    @initialize(method=METHODS)
    def first_request(self, method: str) -> None:
        """The first request starts."""
        self._next_request(method)

    @rule(method=METHODS)
    def next_request(self, method: str) -> None:
        """The request ends, whatever it was doing, and another starts."""
        self._next_request(method)
        self.both(actions.select_all, 0)

    @rule(step=READ, number=NUMBERS)
    def read(self, step: Callable[..., Any], number: int) -> None:
        """Read."""
        self.both(step, number)

    @rule(
        read=READ,
        write=WRITE,
        number=NUMBERS,
        when=MOMENT,
        ending=st.sampled_from([actions.commit, actions.roll_back, actions.flush]),
    )
    def read_lose_write(
        self,
        read: Callable[..., Any],
        write: Callable[..., Any],
        number: int,
        when: tuple[str, str] | None,
        ending: Callable[..., Any],
    ) -> None:
        """Read, write and end in a new request, and lose the replicas on the way."""
        self._next_request("GET")
        for step in (actions.text_read, read):
            self.both(step, number)
        if when is None:
            self.routed.mirrored.lose()
        else:
            self.routed.arm(*when)
        self._write(write, number)
        if self.both(ending) and ending is not actions.flush:
            STEPS["commits"] += ending is actions.commit
            self.dirty = self.snapshot = False

    @rule(step=READ, number=NUMBERS)
    def read_more(self, step: Callable[..., Any], number: int) -> None:
        """Read: what most requests do most of the time."""
        self.both(step, number)

    @rule(step=WRITE, number=NUMBERS)
    def write(self, step: Callable[..., Any], number: int) -> None:
        """Write."""
        self._write(step, number)

    # In using_slave() a flush is refused, and own rows are not there: both are
    # documented, and neither is what a plain session does.
    @precondition(lambda self: not self.dirty)
    @rule(number=NUMBERS)
    def read_in_block(self, number: int) -> None:
        """Read from a replica that was asked for."""
        self.both(actions.slave_read, number)

    @rule()
    def flush(self) -> None:
        """Flush."""
        self.both(actions.flush)

    @rule()
    def commit(self) -> None:
        """Commit."""
        if self.both(actions.commit):
            STEPS["commits"] += self.dirty
            self.dirty = self.snapshot = False

    @rule()
    def roll_back(self) -> None:
        """Roll back."""
        if self.both(actions.roll_back):
            self.dirty = self.snapshot = False

    @rule()
    def begin_nested(self) -> None:
        """Begin a savepoint."""
        self.snapshot = True
        self.both(actions.begin_nested)

    @precondition(lambda self: self.plain.nested and self.routed.nested)
    @rule(keep=st.booleans())
    def end_nested(self, keep: bool) -> None:
        """Release a savepoint or roll back to it."""
        self.both(actions.end_nested, keep)

    @rule(steps=BLOCK, abandon=st.booleans())
    def nested_block(self, steps: list[Any], abandon: bool) -> None:
        """Take some steps in a savepoint."""
        self.snapshot = True
        self._write(actions.nested_block, steps, abandon)

    @precondition(lambda self: not self.in_transaction())
    @rule(steps=BLOCK, abandon=st.booleans())
    def begin_block(self, steps: list[Any], abandon: bool) -> None:
        """Take some steps in a block that commits."""
        if not self.pair.continues:
            # The block would be rolled back in one world.
            self.routed.disarm()
            steps = [step for step in steps if step[0] is not actions.lose]
        STEPS["commits"] += self.both(actions.begin_block, steps, abandon)
        self.dirty = self.snapshot = False

    # On SQLite a savepoint takes a snapshot of the whole database.
    @precondition(lambda self: not self.snapshot and not self.dirty)
    @rule(number=NUMBERS)
    def other_session_write(self, number: int) -> None:
        """Commit in a second session of the request."""
        self.both(actions.other_session_write, number)

    def in_transaction(self) -> bool:
        """Whether a transaction is in progress."""
        return bool(self.plain.run(lambda world: world.session.in_transaction()))

    # --- losses ---------------------------------------------------------------

    @rule()
    def lose_now(self) -> None:
        """Every connection to a replica is lost between two steps."""
        self.routed.mirrored.lose()

    @rule(when=MOMENT)
    def lose_soon(self, when: tuple[str, str] | None) -> None:
        """They are lost in the middle of a step, when a certain moment comes."""
        if when is not None:
            self.routed.arm(*when)

    @rule()
    def replicas_stop(self) -> None:
        """The replicas take no connections for a while."""
        self.routed.down = not self.routed.down

    # --- what always holds ----------------------------------------------------

    @invariant()
    def no_write_on_a_replica(self) -> None:
        """Nothing but reads was sent to a replica."""
        assert self.routed.written == []

    @invariant()
    def same_rows(self) -> None:
        """Both databases hold the same committed rows."""
        routed, plain = self.pair.rows()
        assert routed == plain

    def teardown(self) -> None:
        """End the request, look at what is left, and remove it."""
        try:
            self.plain.end()
            self.routed.end()
            assert self.routed.checked_out() == {}
            self.same_rows()
        finally:
            STEPS["losses"] += self.routed.mirrored.losses
            STEPS["statements on replicas"] += self.routed.served
            self.routed.dispose()
            self.plain.dispose()
            self.routed.forget()
            self.pair.reset()


def drive(pair: Pair, runs: int, long_runs: int, *, twophase: bool = False) -> None:
    """Take fifty steps in each of so many runs; more in the long profile.

    They are the same each time, unless ``FRESH`` is set in the environment.
    """
    members = {
        "pair": pair,
        "plain": plain_world(pair, twophase=twophase),
        "routed": routed_world(pair, twophase=twophase, REPLICATED_BREAKER_RESET=0.001),
    }
    run_state_machine_as_test(
        type("Machine", (PairMachine,), members),
        settings=settings(
            max_examples=long_runs if LONG else runs,
            stateful_step_count=50,
            deadline=None,
            derandomize=not FRESH,
            database=None,
            print_blob=FRESH,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
