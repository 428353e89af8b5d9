"""A pool driven at random beside a model that is too simple to be wrong."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balancers import Member, NoMemberAvailableError, Pool, UnknownMemberError
from balancers.errors import DuplicateMemberError
from balancers.events import MemberOnTrial
from tests.balancers.support import REFUSED, FakeClock, Log, longest, names, targets

NAMES = st.sampled_from("abc")
MORE_NAMES = st.sampled_from("abcd")
RESET, MAX_RESET, LEASE = 1.0, 4.0, 3.0


class Model:
    """One member: its state, and when a trial may be had."""

    def __init__(self) -> None:
        self.state = "closed"
        self.failures = 0
        self.due = 0.0
        self.drained = False

    def trial_is_due(self, now: float) -> bool:
        """Return whether a trial may be had."""
        return self.state != "closed" and not self.drained and now >= self.due


class PoolMachine(RuleBasedStateMachine):
    """Connect outcomes, drains, comings, goings and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.log = FakeClock(), Log()
        self.pool = Pool(
            targets(3),
            reset=RESET,
            max_reset=MAX_RESET,
            lease=LEASE,
            clock=self.clock,
            listeners=[self.log],
            jitter=longest,
        )
        self.models = {name: Model() for name in "abc"}
        self.gone: list[Member[str]] = []

    @rule(name=MORE_NAMES)
    def add(self, name: str) -> None:
        """A member comes; it is healthy and the last in order."""
        if name in self.models:
            with pytest.raises(DuplicateMemberError):
                self.pool.add(name, name)
        else:
            self.pool.add(name, name)
            self.models[name] = Model()

    @rule(name=MORE_NAMES)
    def remove(self, name: str) -> None:
        """A member goes, in whatever condition."""
        if name in self.models:
            self.gone.append(self.pool.remove(name))
            del self.models[name]
        else:
            with pytest.raises(UnknownMemberError):
                self.pool.remove(name)

    @precondition(lambda self: self.gone)
    @rule(outcome=st.sampled_from(["failed", "succeeded", "pause"]), data=st.data())
    def late(self, outcome: str, data: st.DataObject) -> None:
        """A report about a member that is gone changes nothing and tells nothing."""
        member = data.draw(st.sampled_from(self.gone))
        told, permit = len(self.log), self.pool.permit(member)
        if outcome == "failed":
            self.pool.failed(member, REFUSED, permit)
        elif outcome == "pause":
            self.pool.pause(member, 1.0, REFUSED, permit)
        else:
            self.pool.succeeded(member, permit)
        assert len(self.log) == told
        if not self.due():
            first = self.pool.first(member)
            assert first is None if not self.live() else first in self.pool.live

    @rule(name=NAMES)
    def connect_fails(self, name: str) -> None:
        """A connect that begins now fails."""
        if name not in self.models:
            return
        member, model = self.pool.member(name), self.models[name]
        self.pool.failed(member, REFUSED, self.pool.permit(member))
        if model.state == "open":
            return
        model.failures += 1
        if model.state == "half_open" or model.failures >= 2:
            self.open(name)

    @rule(name=NAMES)
    def connect_succeeds(self, name: str) -> None:
        """A connect that begins now succeeds."""
        if name not in self.models:
            return
        member, model = self.pool.member(name), self.models[name]
        self.pool.succeeded(member, self.pool.permit(member))
        if model.state != "open":
            model.state, model.failures = "closed", 0

    @rule(name=NAMES, seconds=st.floats(0.1, 5))
    def pause(self, name: str, seconds: float) -> None:
        """The server turns callers away."""
        if name not in self.models:
            return
        model = self.models[name]
        self.pool.pause(self.pool.member(name), seconds, REFUSED)
        if model.state != "open":
            model.state, model.due = "open", self.clock.now + seconds

    @rule(name=NAMES, seconds=st.floats(0.1, 10))
    def trip(self, name: str, seconds: float) -> None:
        """A background check finds it unfit."""
        if name not in self.models:
            return
        model, now = self.models[name], self.clock.now
        news = self.pool.trip(self.pool.member(name), seconds, REFUSED)
        assert news == (model.state != "open")
        due = self.pool._membership.records[self.pool.member(name)].breaker.due
        assert due >= now + seconds
        if news:
            model.failures += 1
            assert due <= now + max(seconds, MAX_RESET)
        else:
            assert due == max(model.due, now + seconds)
        model.state, model.due = "open", due

    @rule(name=NAMES, late=st.booleans())
    def recover(self, name: str, late: bool) -> None:
        """A background check finds it fit, with a permit that is late or not."""
        if name not in self.models:
            return
        member, model = self.pool.member(name), self.models[name]
        permit = self.pool.permit(member)
        if late and model.state != "open":
            self.trip(name, 1.0)
            self.pool.recover(member, permit)
            return
        self.pool.recover(member, permit)
        if model.state != "closed":
            model.state, model.failures = "closed", 0

    @rule(name=NAMES, drained=st.booleans())
    def drain(self, name: str, drained: bool) -> None:
        """An operator drains or restores a member."""
        if name not in self.models:
            return
        (self.pool.drain if drained else self.pool.restore)(name)
        self.models[name].drained = drained

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, 2.0, 4.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        """The clock moves on."""
        self.clock.advance(seconds)

    @rule(picks=st.integers(1, 6))
    def pick(self, picks: int) -> None:
        """Callers pick."""
        for _ in range(picks):
            due, live = self.due(), self.live()
            if not (due or live):
                with pytest.raises(NoMemberAvailableError):
                    self.pool.pick()
                continue
            name = self.pool.pick().name
            assert name in (due or live)
            if due:
                self.tried(name)

    @rule(first=st.none() | NAMES, outcome=st.booleans())
    def connect(self, first: str | None, outcome: bool) -> None:
        """A caller tries candidates and reports; all fail, or the first succeeds."""
        wish = self.pool.member(first) if first in self.models else None
        tried: list[str] = []
        for member in self.pool.candidates(wish):
            tried.append(member.name)
            model = self.models[member.name]
            # A paused member that the caller named first is no trial.
            known = member is wish and model.state != "closed" and not model.failures
            if not known and model.trial_is_due(self.clock.now):
                self.tried(member.name)
            if outcome:
                self.connect_succeeds(member.name)
                break
            self.connect_fails(member.name)
        assert len(set(tried)) == len(tried)
        if not outcome:
            assert not set(self.live()) - set(tried)
            assert not set(self.due()) - set(tried)

    @invariant()
    def the_same_are_live(self) -> None:
        """Members in rotation are those the model calls healthy and not drained."""
        assert names(self.pool.live) == self.live()

    @invariant()
    def the_same_states_are_shown(self) -> None:
        """A snapshot shows the model's states and counts."""
        for shown in self.pool.snapshot().members:
            model = self.models[shown.name]
            assert (shown.state, shown.drained) == (model.state, model.drained)
            assert shown.failures == model.failures

    @invariant()
    def all_well_costs_nothing(self) -> None:
        """The guard is on the pick exactly while something may fall due."""
        waiting = any(
            model.state != "closed" and not model.drained
            for model in self.models.values()
        )
        assert (self.pool.pick == self.pool._publisher._pick_when_due) == waiting

    def live(self) -> list[str]:
        """Return who is healthy and not drained."""
        return [
            name
            for name, model in self.models.items()
            if model.state == "closed" and not model.drained
        ]

    def due(self) -> list[str]:
        """Return whose trial is due."""
        now = self.clock.now
        return [name for name, one in self.models.items() if one.trial_is_due(now)]

    def open(self, name: str) -> None:
        """The length of a wait is the breaker's own matter; its bounds are not."""
        shown = next(one for one in self.pool.snapshot().members if one.name == name)
        assert shown.retry_in is not None
        assert RESET <= shown.retry_in + 1e-9 <= MAX_RESET + 1e-8
        model = self.models[name]
        model.state = "open"
        model.due = self.pool._membership.records[self.pool.member(name)].breaker.due

    def tried(self, name: str) -> None:
        """Note that a member was handed out as a trial."""
        assert self.log[-1] == MemberOnTrial(name, LEASE)
        model = self.models[name]
        model.state, model.due = "half_open", self.clock.now + LEASE


TestPoolModel = PoolMachine.TestCase
TestPoolModel.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
