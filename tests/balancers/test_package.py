"""What the package shows and what it leans on."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import balancers

PUBLIC = """
BALANCERS Balancer BalancerError CircuitBreaker DuplicateMember Event InvalidPick
InvalidSetting InvalidWeight Listener Member MemberAdded MemberClosed MemberDrained
MemberOpened MemberProbed MemberRemoved MemberRestored MemberSnapshot
NoMemberAvailable Permit Pick Pool PoolSnapshot Random RoundRobin State Strategy
UnknownBalancer UnknownMember Weighted error_text redact resolve_balancer
"""

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


def test_public_names_are_frozen() -> None:
    """A name is added or removed on purpose only, and each one exists."""
    assert balancers.__all__ == PUBLIC.split()
    assert all(hasattr(balancers, name) for name in balancers.__all__)


def test_every_public_thing_is_documented() -> None:
    """Every public class and function has a docstring, and so has each method."""
    for name in balancers.__all__:
        thing = getattr(balancers, name)
        if not (isinstance(thing, type) or callable(thing)):
            continue
        if getattr(thing, "__module__", "").startswith("balancers"):
            assert thing.__doc__, name


def test_events_document_their_attributes() -> None:
    """An event says when it fires, when it does not, and what each field is."""
    for name in balancers.__all__:
        thing = getattr(balancers, name)
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
