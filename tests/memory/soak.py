"""Many visits in one process, and what the process keeps of them."""

from __future__ import annotations

import functools
import gc
import sys
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import psutil

from .visits import VISITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from werkzeug.test import TestResponse

    from .shop import Shop

__all__ = ["Figures", "Report", "small_caches", "soak"]

_RENEWED_EVERY = 500


class Figures(NamedTuple):
    """What a process has at one moment.

    Attributes:
        objects: Objects that the garbage collector knows.
        blocks: Blocks of memory that Python has allocated.
        traced: The bytes in them, if they are traced.
        resident: Bytes of memory that the process has.
    """

    objects: int
    blocks: int
    traced: int
    resident: int

    @classmethod
    def now(cls) -> Figures:
        """Collect garbage, then count."""
        gc.collect()
        traced, _ = tracemalloc.get_traced_memory()
        resident = psutil.Process().memory_info().rss
        return cls(len(gc.get_objects()), sys.getallocatedblocks(), traced, resident)


@dataclass
class Report:
    """What the visits have left.

    Attributes:
        requests: How many requests there were, beside the warm-up.
        wrong: Visits that were not answered as they should be, and how instead.
        held: Requests after which a connection was checked out.
        figures: What the process had at each of many moments after the warm-up.
    """

    requests: int = 0
    wrong: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)

    @property
    def before(self) -> Figures:
        """What the process had in the first third of the moments."""
        return _middle(self.figures[: self._third])

    @property
    def after(self) -> Figures:
        """What it had in the last third."""
        return _middle(self.figures[-self._third :])

    @property
    def growth(self) -> Figures:
        """How much more that is."""
        return Figures(*(b - a for a, b in zip(self.before, self.after, strict=True)))

    @property
    def failed(self) -> bool:
        """Whether something has gone wrong, is held, or goes on growing.

        To keep one request of each hundred alive is to keep some dozens of objects
        for each; what caches hold differs by some hundreds from moment to moment.
        Blocks may be more: each of those holds some.
        """
        bound = max(2000, self.requests // 50)
        grown = self.growth.objects > bound or self.growth.blocks > 3 * bound
        return grown or bool(self.wrong or self.held)

    @property
    def _third(self) -> int:
        return max(1, len(self.figures) // 3)


def _middle(figures: list[Figures]) -> Figures:
    # Caches that are full begin anew, so one moment tells little.
    return Figures(*(int(median(column)) for column in zip(*figures, strict=True)))


@contextmanager
def small_caches() -> Iterator[None]:
    """Let caches be full soon: one that fills for hours looks like a leak."""

    def few(maxsize: int) -> Callable[[Any], Any]:
        return functools.lru_cache(maxsize=maxsize // 50)

    with (
        patch("flask_replicated.engine.gate._MANY", 20),
        patch("flask_replicated.engine.session_state._MANY", 20),
        patch("flask_replicated.sql.text.lru_cache", few),
        patch("flask_replicated.consistency.conversations._MOST", 20),
    ):
        yield


def soak(
    shop: Shop,
    requests: int,
    *,
    warm_up: int,
    moments: int = 30,
    note: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Visit an application again and again.

    Args:
        shop: The application.
        requests: How many requests there are at least, beside the warm-up.
        warm_up: How many visits fill the caches before anything is counted.
        moments: How often the process is looked at.
        note: Told the report after each look.
    """
    report = Report()
    for number in range(warm_up):
        _visit(shop, report, number)
    report.requests, number = 0, warm_up
    for moment in range(1, moments + 1):
        while report.requests < requests * moment // moments:
            _visit(shop, report, number)
            number += 1
        shop.forget_names()
        report.figures.append(Figures.now())
        note(report)
    return report


def _visit(shop: Shop, report: Report, number: int) -> None:
    if number % _RENEWED_EVERY == 0:
        shop.renew()
    visit = VISITS[number % len(VISITS)]
    for response in visit.responses(shop, number):
        report.requests += 1
        if response.status_code != visit.status:
            report.wrong.append(f"{number} {visit.path}: {response.status}")
        _leave(response, shop, forgetful=visit.forgetful)
        if shop.held:
            report.held.append(f"{number} {visit.method} {visit.path}")
            shop.held.clear()


def _leave(response: TestResponse, shop: Shop, *, forgetful: bool) -> None:
    response.close()
    if forgetful and shop.held:
        # A Core connection that nobody has closed is SQLAlchemy's to find.
        gc.collect(0)
        if shop.held:  # it has outlived a collection already
            gc.collect()
