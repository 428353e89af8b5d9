"""The table of verdicts, as docs/failover.md shows it."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.verdicts.rows import DRIVERS, ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.verdicts.rows import Place, Row

DOCUMENT = Path(__file__).parents[2] / "docs" / "failover.md"
BEGIN, END = "<!-- verdicts: begin -->", "<!-- verdicts: end -->"


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


@contextmanager
def _errors() -> Iterator[list[str]]:
    handler, logger = _Errors(), logging.getLogger("flask_replicated")
    logger.addHandler(handler)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)


def verdict(row: Row, place: Place) -> str:
    """Let a row happen, and return what the breaker makes of it."""
    with _errors() as errors, row.provoke(place) as engine:
        seen, *_ = engine.replicas.replica_pool.snapshot().members
    engine.dispose()
    if seen.state == "closed":
        return "stays"
    if not seen.failures:
        return "paused"
    loud = any("not configured right" in error for error in errors)
    return "out, reported" if loud else "out"


def documented() -> dict[str, dict[str, str]]:
    """Return the verdicts that the document shows, by title and driver."""
    text = DOCUMENT.read_text(encoding="utf-8")
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return {
        title: dict(zip(DRIVERS, found, strict=True)) for title, *found in cells[2:]
    }


def rewrite(found: dict[str, dict[str, str]]) -> None:
    """Put a new table into the document."""
    rows = [["what happens", *DRIVERS], ["---"] * (len(DRIVERS) + 1)]
    titles = dict.fromkeys(row.title.strip() for row in ROWS)
    rows += [[t, *(found[t].get(name, "") for name in DRIVERS)] for t in titles]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    DOCUMENT.write_text(f"{head}{BEGIN}\n{lines}\n{END}{tail}", encoding="utf-8")
