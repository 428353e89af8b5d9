"""Demands: what a read of one bind must be shown by the server that answers it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from flask_replicated.system.log_lines import Seldom

from .guarantees import (
    current_guarantees,
    innermost_guarantee,
    max_staleness,
    open_token_blocks,
)
from .tokens import NO_MARK, NOTHING, Token, merge_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .positions import LogPosition

__all__ = ["Demand", "Rules", "UnreadableTokens", "demand_of", "tokens_given"]


logger = logging.getLogger("flask_replicated")

_WARNED_EVERY = 60.0  # seconds


class Demand(NamedTuple):
    """What a read must be shown.

    Attributes:
        position: A log position that the replica must have reached; None for any.
        staleness: Seconds that what the replica shows may be old; None for any.
        primary: Whether only the primary will do, as a token cannot be read.
        replica: A digest of the server that the client last read from; 0 for any. The
            client has seen all that this one has shown.
        monotonic: Whether what is read now counts for later reads.
    """

    position: LogPosition | None = None
    staleness: float | None = None
    primary: bool = False
    replica: int = 0
    monotonic: bool = False


_NO_DEMAND = Demand()


class Rules(NamedTuple):
    """What an application's settings say of demands.

    Attributes:
        guarantee: Its guarantee.
        pin_seconds: How long the time of a write means the primary.
        time_seconds: How long it demands anything. Afterwards no replica that may be
            used can lag so far.
    """

    guarantee: str
    pin_seconds: float
    time_seconds: float


def demand_of(
    bind: int,
    carried: Token,
    rules: Rules,
    keys: Callable[[], Sequence[str | bytes]],
    *,
    lost: bool,
    unreadable: UnreadableTokens,
) -> Demand | None:
    """Return what a read of one bind must be shown now; None if nothing.

    Args:
        bind: The bind's id.
        carried: What the client of the running request carries, and what the request
            has written.
        rules: What the settings say.
        keys: Returns the application's secret keys.
        lost: Whether the store of the client's token has one that cannot be read.
        unreadable: Is told if a block's token cannot be read.
    """
    guarantee, staleness = rules.guarantee, None
    mine, readable = NO_MARK, True
    if current_guarantees.get() is not None:  # else no block is open
        guarantee = innermost_guarantee() or guarantee
        staleness = max_staleness()
        given, readable = tokens_given(keys, unreadable)
        mine = given.of(bind)
    theirs = NO_MARK if guarantee == "none" else carried.of(bind)
    mark = theirs if mine is NO_MARK else mine.merged(theirs)
    monotonic = guarantee == "monotonic"
    lost = lost and guarantee != "none"
    if mark.untold:
        now = time.time()
        lost = lost or now - mine.untold < rules.pin_seconds
        for one in (mine, theirs):
            age = now - one.untold
            # A pin by time is a role: routing has decided already.
            if rules.pin_seconds <= age < rules.time_seconds:
                staleness = age if staleness is None else min(staleness, age)
    demand = Demand(
        mark.position,
        staleness,
        lost or not readable,
        mark.replica if monotonic else 0,
        monotonic,
    )
    return None if demand == _NO_DEMAND else demand


def tokens_given(
    keys: Callable[[], Sequence[str | bytes]],
    unreadable: UnreadableTokens | None = None,
) -> tuple[Token, bool]:
    """Return what the open blocks of ``using_token()`` demand, and have written.

    Args:
        keys: Returns the application's secret keys.
        unreadable: Is told if one cannot be read.

    Returns:
        The token, and whether all of it could be read.
    """
    blocks = open_token_blocks()
    if not blocks:
        return NOTHING, True
    found, readable = merge_texts([block.text for block in blocks], keys())
    if not readable and unreadable is not None:
        unreadable.warn()
    for block in blocks:
        found = found.merged(block.written)
    return found, readable


class UnreadableTokens:
    """Warns that a token cannot be read, once a minute at most."""

    def __init__(self) -> None:
        self._seldom = Seldom(_WARNED_EVERY)

    def warn(self) -> None:
        """Warn, unless that was done a moment ago."""
        if self._seldom.is_due():
            logger.warning(
                "using_token() was given a token that this application cannot read, so "
                "that the primary serves what is read inside. Are the SECRET_KEY and "
                "the database the same where it was made?"
            )
