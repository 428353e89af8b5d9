"""Random steps, with replicas lost at random, against a plain session."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.stateful.conftest import KINDS
from tests.stateful.machine import STEPS, drive
from tests.stateful.servers import LONG, SQLitePair

if TYPE_CHECKING:
    from pathlib import Path

    from tests.stateful.servers import Pair

# When an object whose insert was rolled back goes, SQLAlchemy itself stumbles over
# its missing key: in the plain application as in the routed one.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*InstanceState._cleanup:pytest.PytestUnraisableExceptionWarning"
)


def test_files_where_reads_go_on_elsewhere(tmp_path: Path) -> None:
    """A lost replica changes nothing at all that can be seen."""
    with closing(SQLitePair(tmp_path, continues=True)) as pair:
        drive(pair, 8, 420)


def test_files_where_a_transaction_keeps_its_snapshot(tmp_path: Path) -> None:
    """A lost replica interrupts reads that could not go on truthfully, and no more."""
    with closing(SQLitePair(tmp_path, continues=False)) as pair:
        drive(pair, 4, 150)


@pytest.mark.parametrize("pair", KINDS[1:], indirect=True)
def test_servers(pair: Pair) -> None:
    """A server that ends connections in earnest changes nothing that can be seen."""
    drive(pair, 3, 20)


@pytest.mark.parametrize("pair", KINDS[1:], indirect=True)
def test_two_phases(pair: Pair) -> None:
    """Nor does it where both sessions commit in two phases."""
    drive(pair, 2, 10, twophase=True)


@pytest.mark.skipif(not LONG, reason="the long profile alone promises a number")
def test_enough_was_driven() -> None:
    """The long profile takes the steps that it promises."""
    assert STEPS["steps"] >= 20_000
