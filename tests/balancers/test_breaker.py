"""The breaker alone: counting, waiting, trials."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancers import CircuitBreaker, Permit
from balancers.errors import InvalidSettingError
from tests.balancers.support import FakeClock, longest


@pytest.fixture
def breaker(clock: FakeClock) -> CircuitBreaker:
    """Give a breaker whose waits are as long as they can be."""
    return CircuitBreaker(
        threshold=2, reset=1.0, max_reset=8.0, lease=5.0, clock=clock, jitter=longest
    )


def open_it(breaker: CircuitBreaker) -> None:
    """Let connects fail until it opens."""
    while breaker.state != "open":
        breaker.failed(breaker.permit())


def wait(breaker: CircuitBreaker, clock: FakeClock) -> float:
    """Let the wait pass, take the trial, and return how long the wait was."""
    seconds = breaker.retry_in
    assert seconds is not None
    clock.advance(seconds)
    permit = breaker.acquire()
    assert permit is not None
    assert permit.trial
    return seconds


class TestCounting:
    """Which failures count."""

    def test_new_is_closed(self, breaker: CircuitBreaker) -> None:
        """A new breaker is closed and gives every caller a permit."""
        assert breaker.state == "closed"
        assert breaker.quiet
        assert breaker.retry_in is None
        assert breaker.opened_for is None
        assert breaker.due == math.inf
        assert breaker.acquire() == breaker.acquire() == Permit(0, quiet=True)

    def test_threshold_opens(self, breaker: CircuitBreaker) -> None:
        """The failure that reaches the threshold opens it, and says so."""
        assert not breaker.failed(breaker.permit())
        assert breaker.acquire() is not None
        assert not breaker.quiet
        assert breaker.failed(breaker.permit())
        assert breaker.state == "open"
        assert breaker.acquire() is None

    def test_success_resets_the_count(self, breaker: CircuitBreaker) -> None:
        """Only failures in a row add up."""
        for _ in range(10):
            breaker.failed(breaker.permit())
            breaker.succeeded(breaker.permit())
        assert breaker.state == "closed"
        assert breaker.failures == 0

    def test_one_instant_counts_once(self, breaker: CircuitBreaker) -> None:
        """Failures of attempts that began together count as one."""
        permits = [breaker.permit() for _ in range(8)]
        for permit in permits:
            breaker.failed(permit)
        assert breaker.failures == 1

    def test_without_permits_a_window_stands_in(
        self, breaker: CircuitBreaker, clock: FakeClock
    ) -> None:
        """Without permits, what others report within 0.05 s is the same outage."""
        assert not breaker.failed()
        with ThreadPoolExecutor(1) as threads:
            assert not threads.submit(breaker.failed).result()
            clock.advance(0.04)
            assert not threads.submit(breaker.failed).result()
            assert breaker.failures == 1
            clock.advance(0.02)
            assert threads.submit(breaker.failed).result()

    def test_one_thread_has_tried_again(self, breaker: CircuitBreaker) -> None:
        """A thread that reports again counts at once, also after a success."""
        breaker.failed()
        breaker.succeeded()
        assert not breaker.failed()
        assert breaker.failures == 1
        assert breaker.failed()

    def test_late_success_resets_nothing(self, breaker: CircuitBreaker) -> None:
        """A success that began before the last failure says nothing about after it."""
        early = breaker.permit()
        breaker.failed(breaker.permit())
        breaker.succeeded(early)
        assert breaker.failures == 1

    def test_threshold_of_one(self, clock: FakeClock) -> None:
        """With a threshold of 1 the first failure opens it."""
        breaker = CircuitBreaker(threshold=1, clock=clock)
        assert breaker.failed(breaker.permit())


class TestOpen:
    """How long it stays open."""

    def test_late_news_change_nothing(self, breaker: CircuitBreaker) -> None:
        """While it is open neither success nor failure nor pause moves it."""
        early = breaker.permit()
        open_it(breaker)
        before = breaker.due
        for permit in (early, breaker.permit(), None):
            assert not breaker.succeeded(permit)
            assert not breaker.failed(permit)
            assert not breaker.pause(99.0, permit)
        assert breaker.state == "open"
        assert breaker.due == before

    def test_tells_its_times(self, breaker: CircuitBreaker, clock: FakeClock) -> None:
        """It says for how long it has been open and when its trial is due."""
        open_it(breaker)
        clock.advance(0.25)
        assert breaker.opened_for == 0.25
        assert breaker.retry_in == 0.75
        clock.advance(5)
        assert breaker.retry_in == 0.0

    def test_backs_off(self, breaker: CircuitBreaker, clock: FakeClock) -> None:
        """Each failed trial doubles the wait up to the longest."""
        open_it(breaker)
        waits = []
        for _ in range(6):
            waits.append(wait(breaker, clock))
            breaker.failed(breaker.permit())
        assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]

    def test_flapping_keeps_the_back_off(
        self, breaker: CircuitBreaker, clock: FakeClock
    ) -> None:
        """A member that recovers for a moment only waits longer the next time."""
        waits = []
        for _ in range(4):
            open_it(breaker)
            waits.append(wait(breaker, clock))
            breaker.succeeded(breaker.permit())
        assert waits == [1.0, 2.0, 4.0, 8.0]

    def test_health_forgets(self, breaker: CircuitBreaker, clock: FakeClock) -> None:
        """Each longest wait spent in health forgets one doubling."""
        for _ in range(4):
            open_it(breaker)
            wait(breaker, clock)
            breaker.succeeded(breaker.permit())
        clock.advance(16.0)
        open_it(breaker)
        assert breaker.retry_in == 2.0
        wait(breaker, clock)
        breaker.succeeded(breaker.permit())
        clock.advance(1e9)
        open_it(breaker)
        assert breaker.retry_in == 1.0

    @given(st.floats(0, 1), st.integers(0, 2000))
    def test_wait_is_jittered_and_bounded(self, chance: float, failures: int) -> None:
        """A wait is between half of reset and max_reset, however many came before."""
        clock = FakeClock()
        breaker = CircuitBreaker(clock=clock, jitter=lambda: chance)
        open_it(breaker)
        for _ in range(failures % 40):
            wait(breaker, clock)
            breaker.failed(breaker.permit())
        assert breaker.retry_in is not None
        assert 0.5 - 1e-6 <= breaker.retry_in <= 60.0 + 1e-6


class TestTrial:
    """Who may try, and whose outcome counts."""

    def test_one_at_a_time(self, breaker: CircuitBreaker, clock: FakeClock) -> None:
        """Only one caller is given leave when the wait is over."""
        open_it(breaker)
        clock.advance(1.0)
        leaves = [breaker.acquire() for _ in range(8)]
        assert len([leave for leave in leaves if leave]) == 1
        assert breaker.state == "half_open"

    def test_success_closes(self, breaker: CircuitBreaker, clock: FakeClock) -> None:
        """A trial that succeeds closes the breaker, and says so."""
        open_it(breaker)
        wait(breaker, clock)
        assert breaker.succeeded(breaker.permit())
        assert breaker.state == "closed"
        assert breaker.quiet

    def test_failure_opens_again(
        self, breaker: CircuitBreaker, clock: FakeClock
    ) -> None:
        """A trial that fails opens it at once, and time out goes on counting."""
        open_it(breaker)
        wait(breaker, clock)
        assert breaker.failed()
        assert breaker.state == "open"
        assert breaker.failures == 3
        assert breaker.opened_for == 1.0

    def test_a_lost_trial_does_not_stick(
        self, breaker: CircuitBreaker, clock: FakeClock
    ) -> None:
        """When the lease is over, another caller gets a new trial."""
        open_it(breaker)
        wait(breaker, clock)
        clock.advance(4.9)
        assert breaker.acquire() is None
        clock.advance(0.2)
        second = breaker.acquire()
        assert second is not None
        assert second.trial

    def test_a_late_trial_changes_nothing(
        self, breaker: CircuitBreaker, clock: FakeClock
    ) -> None:
        """The outcome of a trial whose lease was given on changes nothing."""
        open_it(breaker)
        wait(breaker, clock)
        late = breaker.permit()
        clock.advance(5.0)
        second = breaker.acquire()
        assert not breaker.succeeded(late)
        assert not breaker.failed(late)
        assert not breaker.pause(1.0, late)
        assert breaker.state == "half_open"
        assert breaker.succeeded(second)

    def test_news_from_before_the_outage_change_nothing(
        self, breaker: CircuitBreaker, clock: FakeClock
    ) -> None:
        """A success that began before the opening does not end a trial."""
        early = breaker.permit()
        open_it(breaker)
        wait(breaker, clock)
        assert not breaker.succeeded(early)
        assert breaker.state == "half_open"

    def test_a_failure_just_after_recovery_is_of_the_old_outage(
        self, breaker: CircuitBreaker, clock: FakeClock
    ) -> None:
        """Without a permit, a failure in the instant of closing is not counted."""
        open_it(breaker)
        wait(breaker, clock)
        breaker.succeeded()
        breaker.failed()
        assert breaker.quiet


class TestRest:
    """Out for a while without a failure."""

    def test_counts_no_failure(self, breaker: CircuitBreaker, clock: FakeClock) -> None:
        """A pause opens for its time, ends in a trial, and adds no back-off."""
        assert breaker.pause(3.0, breaker.permit())
        assert breaker.failures == 0
        assert wait(breaker, clock) == 3.0
        assert breaker.pause(3.0)
        assert breaker.opened_for == 3.0
        wait(breaker, clock)
        assert breaker.succeeded()
        open_it(breaker)
        assert breaker.retry_in == 1.0

    @pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf])
    def test_needs_a_time(self, breaker: CircuitBreaker, seconds: float) -> None:
        """A pause of no time, or for ever, is an error and changes nothing."""
        with pytest.raises(InvalidSettingError):
            breaker.pause(seconds)
        assert breaker.state == "closed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 0),
        ("threshold", 1.5),
        ("threshold", True),
        ("reset", 0.0),
        ("reset", math.nan),
        ("reset", "1"),
        ("max_reset", 0.5),
        ("max_reset", math.inf),
        ("lease", 0),
        ("instant", -0.1),
    ],
)
def test_bad_numbers_are_refused(name: str, value: object) -> None:
    """A number out of range is an error that names it and its value."""
    with pytest.raises(InvalidSettingError) as caught:
        CircuitBreaker(**{name: value})  # type: ignore[arg-type]  # that is the point
    assert caught.value.name == name
    assert repr(value) in str(caught.value)


def test_repr_shows_the_state(breaker: CircuitBreaker) -> None:
    """The repr names state and failures."""
    breaker.failed()
    assert repr(breaker) == "<CircuitBreaker closed, failures=1>"


class TestWatched:
    """A background check knows more than one attempt."""

    def test_trip(self, breaker: CircuitBreaker) -> None:
        """It opens at once, whatever the threshold, and only the first time."""
        assert breaker.trip(7.5)
        assert breaker.state == "open"
        assert not breaker.trip(7.5)
        assert breaker.failures == 1

    def test_nobody_probes_meanwhile(
        self, breaker: CircuitBreaker, clock: FakeClock
    ) -> None:
        """Each new word prolongs the wait; after the last one it ends."""
        for _ in range(100):
            breaker.trip(7.5)
            assert breaker.retry_in == 7.5
            clock.advance(5.0)
            assert breaker.acquire() is None
        clock.advance(2.5)
        assert breaker.acquire() is not None

    def test_a_trial_in_flight(self, breaker: CircuitBreaker, clock: FakeClock) -> None:
        """What a trial finds that began before the last word is late."""
        open_it(breaker)
        wait(breaker, clock)
        permit = breaker.permit()
        assert breaker.trip(7.5)
        assert not breaker.succeeded(permit)
        assert breaker.state == "open"

    def test_recover(self, breaker: CircuitBreaker) -> None:
        """It closes at once, with nothing to forget."""
        breaker.trip(60.0)
        assert breaker.recover(breaker.permit())
        assert breaker.quiet
        assert not breaker.recover()

    def test_late_recovery(self, breaker: CircuitBreaker) -> None:
        """A check that began before the breaker opened changes nothing."""
        permit = breaker.permit()
        open_it(breaker)
        assert not breaker.recover(permit)
        assert breaker.state == "open"

    @pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
    def test_seconds(self, breaker: CircuitBreaker, seconds: float) -> None:
        """A wait is a finite time."""
        with pytest.raises(InvalidSettingError):
            breaker.trip(seconds)
