"""Two runs of one suite, compared test by test."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .environments import Run
    from .suites import Suite

__all__ = ["Comparison", "Difference", "compare"]

ABSENT = "absent"
_MOST_WRONG = 0.05
"""By how much the prediction may be wrong, of all reads."""


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
        predicted: The share of reads that replicas would serve, as it was observed
            without any.
        served: The share of reads that they have served.
        disturbed: The tests that have ended in another way because they were observed.
    """

    tests: int
    passed: int
    differences: tuple[Difference, ...]
    routed_apps: int
    replica_statements: int
    predicted: float
    served: float
    disturbed: tuple[str, ...]

    @property
    def same(self) -> int:
        """How many tests have ended in one way."""
        return self.tests - len(self.differences)

    @property
    def failed(self) -> bool:
        """Whether the suite tells against the package, or tells nothing."""
        unexpected = any(it.argument is None for it in self.differences)
        wrong = abs(self.predicted - self.served) > _MOST_WRONG
        amiss = unexpected or wrong or bool(self.disturbed)
        return amiss or not self.passed or not self.replica_statements


def compare(suite: Suite, plain: Run, routed: Run, observed: Run) -> Comparison:
    """Compare the runs of one suite.

    Args:
        suite: The suite, which knows what may differ.
        plain: The run without replicas.
        routed: The run with them.
        observed: The run that predicts what they would serve.
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
        observed.share,
        routed.share,
        tuple(
            test
            for test in sorted(plain.outcomes.keys() | observed.outcomes.keys())
            if plain.outcomes.get(test) != observed.outcomes.get(test)
        ),
    )
