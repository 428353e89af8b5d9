"""What the doctor has found, each with its remedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from balancers.errors import redact

if TYPE_CHECKING:
    from flask_replicated.errors import ConfigurationError

__all__ = ["Finding", "Kind", "Report", "Severity", "misconfigured_app"]

Severity: TypeAlias = Literal["error", "warning"]

Kind: TypeAlias = Literal[
    "configuration",
    "connections",
    "database",
    "history",
    "isolation",
    "lag",
    "memory",
    "misnamed",
    "pooler",
    "primary",
    "privilege",
    "refused",
    "role",
    "schema",
    "secret_key",
    "session_table",
    "unreachable",
    "web_server",
    "writable",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. No password is in it.

    Attributes:
        severity: ``'error'`` where a server cannot serve as configured.
        kind: What it is about; one of a closed set.
        bind: The key of its bind, ``''`` for the default one; None if it concerns the
            application.
        what: What was found, without a full stop.
        remedy: What to change: a setting or SQL, as it is to be written.
    """

    severity: Severity
    kind: Kind
    bind: str | None
    what: str
    remedy: str

    def __post_init__(self) -> None:
        for name in ("what", "remedy"):
            object.__setattr__(self, name, redact(getattr(self, name)).rstrip(". "))


class Report(NamedTuple):
    """What one examination has found.

    Attributes:
        findings: Errors first.
        servers: How many engines were asked.
        workers: How many worker processes were counted with; None if unknown.
    """

    findings: tuple[Finding, ...]
    servers: int = 0
    workers: int | None = None

    def count(self, severity: Severity) -> int:
        """Return how many findings are of a severity."""
        return sum(one.severity == severity for one in self.findings)

    @property
    def exit_code(self) -> int:
        """0 if all is sound, 1 with warnings, 2 with errors."""
        return 2 if self.count("error") else int(bool(self.findings))

    def as_json(self) -> dict[str, object]:
        """Return it as ``flask replicated check --json`` shows it."""
        return {
            "sound": not self.findings,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "servers": self.servers,
            "workers": self.workers,
            "findings": [asdict(one) for one in self.findings],
        }


def misconfigured_app(error: ConfigurationError) -> Report:
    """Return the report on an application that a setting keeps from starting."""
    _, bracket, rest = error.key.partition("['")
    bind = rest.removesuffix("']") if bracket and error.key.endswith("']") else None
    why, _, remedy = error.remedy.partition(". ")
    what = f"the application does not start: {error.key} = {error.value!r}: {why}"
    remedy = remedy or f"{error.key} {why}"
    return Report((Finding("error", "configuration", bind, what, remedy),))
