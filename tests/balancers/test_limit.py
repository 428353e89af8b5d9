"""A pool that uses a few of its members: a stable subset, always full."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancers import Pool
from balancers.errors import InvalidSettingError
from balancers.events import MemberAdded
from tests.balancers.support import (
    REFUSED,
    FakeClock,
    fail,
    longest,
    names,
    tally,
    targets,
)

MANY = [f"m{number}" for number in range(12)]


def make(limit: int | None, **options: object) -> Pool[str]:
    """Return a pool of twelve."""
    return Pool(
        dict.fromkeys(MANY, ""),
        limit=limit,
        jitter=longest,
        **options,  # type: ignore[arg-type]  # mypy sees no names
    )


class TestSubset:
    """Who is in the rotation."""

    def test_uses_so_many(self) -> None:
        """Picks fall on so many members, evenly, by the strategy's own function."""
        pool = make(3)
        assert len(pool.live) == 3
        assert tally(pool.pick, 30) == dict.fromkeys(names(pool.live), 10)
        assert isinstance(getattr(pool.pick, "__self__", None), cycle)
        assert len(pool.members) == 12

    def test_a_limit_of_all_is_none(self) -> None:
        """With as many as there are, or more, every member is used."""
        assert names(make(12).live) == names(make(99).live) == MANY
        assert names(make(None).live) == MANY

    @pytest.mark.parametrize("limit", [0, -1, 1.5, True, "2"])
    def test_a_bad_limit_is_an_error(self, limit: object) -> None:
        """A limit is a whole number from 1 up."""
        with pytest.raises(InvalidSettingError, match="limit"):
            Pool({}, limit=limit)  # type: ignore[arg-type]  # that is the point

    def test_is_stable(self) -> None:
        """Reshuffling in the same process, or draining a spare, changes nothing."""
        pool = make(3)
        before = pool.live
        pool.reshuffle()
        assert pool.live == before
        for name in MANY:
            if name not in names(before):
                pool.drain(name)
                assert pool.live == before

    def test_differs_from_pool_to_pool(self) -> None:
        """Many processes use every member, about equally often."""
        used = Counter(name for _ in range(600) for name in names(make(3).live))
        assert set(used) == set(MANY)
        assert max(used.values()) < 2 * min(used.values())

    def test_heavier_ones_are_likelier(self) -> None:
        """A member of weight 3 is the first choice three times as often."""
        weights = {"a": 3, "b": 1}
        first = Counter(
            Pool({"a": 1, "b": 1}, weights=weights, balancer="weighted", limit=1)
            .pick()
            .name
            for _ in range(4000)
        )
        assert 2800 < first["a"] < 3200

    def test_weight_zero_is_never_chosen(self) -> None:
        """A member without weight fills no place."""
        pool = Pool(targets(2), weights={"a": 0}, limit=1)
        assert names(pool.live) == ["b"]


class TestReplacement:
    """When one of them goes."""

    def test_the_next_takes_its_place(self) -> None:
        """The others stay, one is new, and the old one has its place back after."""
        clock = FakeClock()
        pool = make(3, clock=clock)
        before = set(pool.live)
        lost = pool.live[0]
        fail(pool, lost.name)
        assert len(pool.live) == 3
        (new,) = set(pool.live) - before
        assert set(pool.live) - {new} == before - {lost}
        assert tally(pool.pick, 30)[new.name] == 10
        clock.advance(1.0)
        trial = pool.pick()
        assert trial is lost
        pool.succeeded(trial, pool.permit(trial))
        assert set(pool.live) == before

    def test_by_drain_and_by_removal_too(self) -> None:
        """However a member goes, the subset stays full until all are used."""
        pool = make(3)
        for left in range(11, 0, -1):
            name = pool.live[0].name
            (pool.remove if left % 2 else pool.drain)(name)
            assert len(pool.live) == min(3, left)

    def test_a_new_member_moves_one_at_most(self) -> None:
        """A member that comes takes a place, or none; the others keep theirs."""
        seen = set()
        for _ in range(60):
            pool = make(3)
            before = set(pool.live)
            new = pool.add("new", "")
            assert len(pool.live) == 3
            seen.add(len(set(pool.live) - before))
            assert set(pool.live) - before <= {new}
        assert seen == {0, 1}

    def test_a_name_that_returns_has_its_place(self) -> None:
        """The order goes by names: removed and added, it is where it was."""
        pool = make(3)
        before = names(pool.live)
        for name in MANY:
            pool.remove(name)
            pool.add(name, "")
        assert sorted(names(pool.live)) == sorted(before)

    @given(st.data())
    def test_it_is_the_first_fit_ones_of_an_order(self, data: st.DataObject) -> None:
        """Whatever happened, members in rotation come before all that could be."""
        pool = make(4)
        order = names(pool._publisher._subset.order(pool.members))
        for _ in range(10):
            name = data.draw(st.sampled_from(MANY))
            act = data.draw(st.sampled_from([pool.drain, pool.restore]))
            act(name)
            shown = pool.snapshot()
            fit = {one.name for one in shown.members if not one.drained}
            assert set(shown.live) == set([n for n in order if n in fit][:4])
            assert shown.live == tuple(names(pool.live))


class TestSpares:
    """Those that are not in it."""

    def test_are_tried_last(self) -> None:
        """If all in the rotation fail, the spares are tried, each once, in order."""
        pool = make(3)
        order = names(pool._publisher._subset.order(pool.members))
        tried = names(pool.candidates())
        assert set(tried[:3]) == set(order[:3])
        assert tried[3:] == order[3:]

    def test_are_all_tried_as_they_move_up(self) -> None:
        """When each member tried fails and a spare takes its place, none is missed."""
        pool = make(3, threshold=1)
        tried = []
        for member in pool.candidates():
            tried.append(member.name)
            pool.failed(member, REFUSED, pool.permit(member))
        assert sorted(tried) == sorted(MANY)

    def test_are_shown_as_spare(self) -> None:
        """A snapshot says that they are not in rotation, and causes say why."""
        pool = make(3)
        shown = pool.snapshot()
        assert len(shown.live) == 3
        assert [one.name for one in shown.members if one.live] == list(shown.live)
        assert Counter(pool.causes().values()) == {"in rotation": 3, "spare": 9}

    def test_are_listed_in_order(self) -> None:
        """The next one to be used comes first."""
        pool = make(3)
        first, *rest = pool.spares
        assert len(rest) == 8
        pool.drain(pool.live[0].name)
        assert first in pool.live
        assert list(pool.spares) == rest
        assert make(None).spares == ()

    def test_may_be_wished_for(self) -> None:
        """A request that holds a member keeps it when it becomes spare."""
        pool = make(1)
        spare = next(one for one in pool.members if one not in pool.live)
        assert pool.first(spare) is spare
        pool.failed(spare, REFUSED, pool.permit(spare))
        assert len(pool.live) == 1

    def test_to_an_empty_pool(self) -> None:
        """Members that come one by one fill the places first."""
        told: list[object] = []
        pool: Pool[str] = Pool({}, limit=2, listeners=[told.append])
        for number, name in enumerate(MANY, 1):
            pool.add(name, "")
            assert len(pool.live) == min(number, 2)
        assert told == [MemberAdded(name, 1) for name in MANY]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_has_its_own() -> None:
    """Each child draws an order of its own; the parent keeps its one."""
    pool = make(3)
    before = names(pool.live)

    def child() -> list[str]:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            pool.reshuffle()
            os.write(write, json.dumps(names(pool.live)).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        with os.fdopen(read) as pipe:
            return list(json.load(pipe))

    chosen = {tuple(child()) for _ in range(8)}
    assert len(chosen) > 4
    assert names(pool.live) == before
