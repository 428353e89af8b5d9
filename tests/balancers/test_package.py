"""What the package shows and what it leans on."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import balancers

PUBLIC = """
BalancerError CircuitBreaker Event Feedback First LatencyWindow LeastOutstanding
Listener Member MemberSnapshot NoMemberAvailableError PeakEwma Permit Pick Pool
PoolSnapshot Random RoundRobin Strategy UnknownMemberError Weighted Zoned
"""

MODULES = {
    "breaker": "CircuitBreaker Permit Status",
    "errors": """
        BalancerError DuplicateMemberError InvalidPickError InvalidSettingError
        InvalidWeightError NoMemberAvailableError UnknownBalancerError
        UnknownMemberError WeightsUnreadError error_text redact
        """,
    "events": """
        Event Listener MemberAdded MemberClosed MemberDrained MemberOnTrial
        MemberOpened MemberRemoved MemberRestored MemberReweighted MemberSnapshot
        PoolSnapshot State
        """,
    "feedback": "DECAY Feedback PeakFeedback is_feedback",
    "pool": "Pool",
    "strategies": """
        BALANCERS Balancer First LatencyWindow LeastOutstanding MAX_STEPS Member
        PeakEwma Pick Random RoundRobin Strategy Weighted Zoned is_shipped
        reads_weights resolve_balancer
        """,
}

ALONE = """
import sys, threading
for name in ("flask", "sqlalchemy", "werkzeug", "flask_sqlalchemy"):
    sys.modules[name] = None
import balancers
foreign = {
    name.partition(".")[0] for name in sys.modules if sys.modules[name] is not None
} - set(sys.stdlib_module_names) - {"balancers", "__main__"}
pool = balancers.Pool({"a": 1})
pool.pick()
assert threading.active_count() == 1
print(sorted(name for name in foreign if not name.startswith(("_", "sitecustomize"))))
"""


def public() -> dict[str, object]:
    """Return what the package and its public modules offer, by name."""
    modules = [importlib.import_module(f"balancers.{name}") for name in MODULES]
    return {n: getattr(m, n) for m in modules for n in m.__all__}


def test_public_names_are_frozen() -> None:
    """A name is added or removed on purpose only, and each one exists."""
    assert balancers.__all__ == PUBLIC.split()
    assert all(hasattr(balancers, name) for name in balancers.__all__)
    assert set(balancers.__all__) <= set(public())


@pytest.mark.parametrize(("module", "listed"), MODULES.items())
def test_names_of_modules_are_frozen(module: str, listed: str) -> None:
    """So are the names that a module offers besides."""
    found = importlib.import_module(f"balancers.{module}")
    assert sorted(found.__all__) == sorted(listed.split())
    assert all(hasattr(found, name) for name in found.__all__)


def test_every_public_thing_is_documented() -> None:
    """Every public class and function has a docstring, and so has each method."""
    for thing in public().values():
        if not (isinstance(thing, type) or callable(thing)):
            continue
        if getattr(thing, "__module__", "").startswith("balancers"):
            assert thing.__doc__, thing


def test_events_document_their_attributes() -> None:
    """An event says when it fires, when it does not, and what each field is."""
    for name, thing in public().items():
        if name.startswith("Member") and dataclasses.is_dataclass(thing):
            doc = thing.__doc__ or ""
            assert "Attributes:" in doc
            assert all(f"{field.name}:" in doc for field in dataclasses.fields(thing))


def test_needs_the_standard_library_alone() -> None:
    """The package imports and works where no framework is installed."""
    root = Path(balancers.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-c", ALONE],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"


def test_keeps_no_mutable_module_state() -> None:
    """No module of the package holds a list, dict or set of its own."""
    for name, module in list(sys.modules.items()):
        if name.startswith("balancers"):
            mine = {k: v for k, v in vars(module).items() if not k.startswith("__")}
            assert not [k for k, v in mine.items() if isinstance(v, (list, dict, set))]
