"""Pick from a pool of things of which some may be out of order.

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
"""

from .breaker import CircuitBreaker, Permit
from .errors import (
    BalancerError,
    DuplicateMember,
    InvalidPick,
    InvalidSetting,
    InvalidWeight,
    NoMemberAvailable,
    UnknownBalancer,
    UnknownMember,
    error_text,
    redact,
)
from .events import (
    Event,
    Listener,
    MemberAdded,
    MemberClosed,
    MemberDrained,
    MemberOpened,
    MemberProbed,
    MemberRemoved,
    MemberRestored,
    MemberSnapshot,
    PoolSnapshot,
    State,
)
from .pool import Pool
from .strategies import (
    BALANCERS,
    Balancer,
    Member,
    Pick,
    Random,
    RoundRobin,
    Strategy,
    Weighted,
    resolve_balancer,
)

__all__ = [
    "BALANCERS",
    "Balancer",
    "BalancerError",
    "CircuitBreaker",
    "DuplicateMember",
    "Event",
    "InvalidPick",
    "InvalidSetting",
    "InvalidWeight",
    "Listener",
    "Member",
    "MemberAdded",
    "MemberClosed",
    "MemberDrained",
    "MemberOpened",
    "MemberProbed",
    "MemberRemoved",
    "MemberRestored",
    "MemberSnapshot",
    "NoMemberAvailable",
    "Permit",
    "Pick",
    "Pool",
    "PoolSnapshot",
    "Random",
    "RoundRobin",
    "State",
    "Strategy",
    "UnknownBalancer",
    "UnknownMember",
    "Weighted",
    "error_text",
    "redact",
    "resolve_balancer",
]
