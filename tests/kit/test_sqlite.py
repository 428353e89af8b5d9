"""The test kit on SQLite: memory and files, with replicas and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flask_replicated import ConfigurationError
from flask_replicated.testing import mirror
from tests.kit.contract import MirrorContract
from tests.kit.shop import Shop, make_shop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class TestMemory(MirrorContract):
    """A memory database, whose only connection all share."""

    @pytest.fixture
    def shop(self) -> Iterator[Shop]:
        """Give a shop without replicas."""
        shop = make_shop("sqlite://")
        yield shop
        shop.close()

    def test_a_replica_that_is_added(self, shop: Shop) -> None:
        """None can be added to a memory database, here as in production."""
        with (
            mirror(shop.app),
            shop.app.app_context(),
            pytest.raises(ConfigurationError, match="a memory database"),
        ):
            shop.app.extensions["replicated"].add("slave_3", "sqlite:///none.db")


class TestFileAlone(MirrorContract):
    """A file without replicas."""

    @pytest.fixture
    def shop(self, tmp_path: Path) -> Iterator[Shop]:
        """Give a shop without replicas."""
        shop = make_shop(f"sqlite:///{tmp_path}/shop.db")
        yield shop
        shop.close()


class TestFile(MirrorContract):
    """A file, and replicas whose files do not exist."""

    @pytest.fixture
    def shop(self, tmp_path: Path) -> Iterator[Shop]:
        """Give a shop with two replicas."""
        binds = {f"slave_{n}": f"sqlite:///{tmp_path}/none_{n}.db" for n in (1, 2)}
        shop = make_shop(f"sqlite:///{tmp_path}/shop.db", binds)
        yield shop
        shop.close()
