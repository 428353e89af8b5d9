"""What tests need of replicas; nothing of it is imported in production.

Each is a context manager for the current application, or for the one given as ``app=``.
With pytest the fixture ``replicated`` has them as methods.
"""

from __future__ import annotations

from .beliefs import replica_down, replica_lags
from .fixture import Replicated
from .mirroring import mirror
from .recorder import RecordedDecision, assert_served, recorded_decisions

__all__ = [
    "RecordedDecision",
    "Replicated",
    "assert_served",
    "mirror",
    "recorded_decisions",
    "replica_down",
    "replica_lags",
]
