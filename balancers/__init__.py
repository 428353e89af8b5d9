"""Pick from a pool of things, some of which may be out of order.

pool = Pool({"a": one, "b": two}, balancer=Weighted(), weights={"a": 3})
for member in pool.candidates():
    permit = pool.permit(member)
    try:
        connection = connect(member.target)
    except OSError as error:
        pool.failed(member, error, permit)
    else:
        pool.succeeded(member, permit)
        break

What few programs need is in the modules: the events that listeners receive in
``balancers.events``, all errors in ``balancers.errors``, the strategies by name in
``balancers.strategies``.
"""

from .breaker import CircuitBreaker, Permit
from .errors import BalancerError, NoMemberAvailableError, UnknownMemberError
from .events import Event, Listener, MemberSnapshot, PoolSnapshot
from .feedback import Feedback
from .pool import Pool
from .strategies import (
    First,
    LatencyWindow,
    LeastOutstanding,
    Member,
    PeakEwma,
    Pick,
    Random,
    RoundRobin,
    Strategy,
    Weighted,
    Zoned,
)

__all__ = [
    "BalancerError",
    "CircuitBreaker",
    "Event",
    "Feedback",
    "First",
    "LatencyWindow",
    "LeastOutstanding",
    "Listener",
    "Member",
    "MemberSnapshot",
    "NoMemberAvailableError",
    "PeakEwma",
    "Permit",
    "Pick",
    "Pool",
    "PoolSnapshot",
    "Random",
    "RoundRobin",
    "Strategy",
    "UnknownMemberError",
    "Weighted",
    "Zoned",
]
