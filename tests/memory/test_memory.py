"""Nothing stays behind of a request, whatever it did."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("asgiref")
pytest.importorskip("psutil")

from tests.memory.shop import Shop
from tests.memory.soak import small_caches, soak
from tests.memory.visits import VISITS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUESTS = 4000


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Give an application whose caches are full soon."""
    # pytest would keep what is logged.
    monkeypatch.setattr(logging.getLogger("flask_replicated"), "disabled", True)
    with small_caches():
        shop = Shop(tmp_path, query_cache_size=10)
        yield shop
        shop.dispose()


def test_four_thousand_requests(shop: Shop) -> None:
    """No memory grows, and no connection is checked out between requests."""
    report = soak(shop, REQUESTS, warm_up=10 * len(VISITS), moments=15)

    assert not report.wrong
    assert not report.held
    assert not report.failed, report.growth
