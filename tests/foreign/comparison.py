"""Two runs of one suite, compared test by test."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .environments import Run
    from .suites import Suite

__all__ = ["Comparison", "Difference", "compare"]

ABSENT = "absent"


class Difference(NamedTuple):
    """A test that has ended in two ways.

    Attributes:
        test: The test's id.
        plain: How it has ended without replicas.
        routed: How it has ended with them.
        reason: The message of the failure, if either has failed.
        argument: Why it may differ, or None where it must not.
    """

    test: str
    plain: str
    routed: str
    reason: str
    argument: str | None


class Comparison(NamedTuple):
    """What the two runs of one suite have in common, and what not.

    Attributes:
        tests: How many tests there are.
        passed: How many have passed in both runs.
        differences: The tests that have ended in two ways.
        routed_apps: How many applications got replicas.
        replica_statements: How many statements replicas have served.
    """

    tests: int
    passed: int
    differences: tuple[Difference, ...]
    routed_apps: int
    replica_statements: int

    @property
    def same(self) -> int:
        """How many tests have ended in one way."""
        return self.tests - len(self.differences)

    @property
    def failed(self) -> bool:
        """Whether the suite tells against the package, or tells nothing."""
        unexpected = any(it.argument is None for it in self.differences)
        return unexpected or not self.passed or not self.replica_statements


def compare(suite: Suite, plain: Run, routed: Run) -> Comparison:
    """Compare two runs of one suite.

    Args:
        suite: The suite, which knows what may differ.
        plain: The run without replicas.
        routed: The run with them.
    """
    tests = sorted(plain.outcomes.keys() | routed.outcomes.keys())
    passed = 0
    differences = []
    for test in tests:
        before, after = (run.outcomes.get(test, ABSENT) for run in (plain, routed))
        if before != after:
            reason = routed.reasons.get(test) or plain.reasons.get(test) or ""
            argument = suite.argument(test)
            differences.append(Difference(test, before, after, reason, argument))
        passed += before == after == "passed"
    return Comparison(
        len(tests),
        passed,
        tuple(differences),
        routed.routed_apps,
        routed.replica_statements,
    )
