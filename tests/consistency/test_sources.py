"""What asks for log positions, and what the reports of probes become."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from flask_replicated.consistency import sources
from flask_replicated.consistency.positions import LogPosition
from flask_replicated.consistency.sources import (
    cluster_digest,
    from_primary_report,
    from_replica_report,
    position_source,
    register_positions,
)
from flask_replicated.replica.primary_status import PrimaryReport
from flask_replicated.replica.replica_status import ReplicaReport

SYSTEM = 7_312_345_678_901_234_567
CLUSTER = cluster_digest(SYSTEM)
UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"


def test_known_databases() -> None:
    """SQLite has no log that a replica could be compared by."""
    assert position_source("sqlite") is None
    assert position_source("postgresql") is not None
    assert position_source("mysql") is not None
    assert position_source("mariadb") is not None


def test_registered() -> None:
    """A program may add a database."""

    class Source:
        def position(self, connection: Any) -> LogPosition | None:
            return LogPosition(0, 0, {0: 2})

        def replayed(self, connection: Any) -> LogPosition | None:
            return LogPosition(0, 0, {0: 1})

    source = Source()
    register_positions("of-a-test", source)
    assert position_source("of-a-test") is source


def test_cluster() -> None:
    """A cluster's digest has 32 bits and is never that of no cluster."""
    assert 0 < CLUSTER < 2**32
    assert CLUSTER == cluster_digest(SYSTEM) != cluster_digest(SYSTEM + 1)


STANDBY = ReplicaReport(primary=False, replayed=8000, timeline=2)


@pytest.mark.parametrize(
    ("report", "system", "expected"),
    [
        (STANDBY, SYSTEM, LogPosition(CLUSTER, 2, {0: 8000})),
        # Behind the header of a page, and of the first one of a file.
        (STANDBY._replace(replayed=8216), SYSTEM, LogPosition(CLUSTER, 2, {0: 8192})),
        (STANDBY._replace(replayed=40), SYSTEM, LogPosition(CLUSTER, 2, {0: 0})),
        (STANDBY._replace(replayed=32), SYSTEM, LogPosition(CLUSTER, 2, {0: 32})),
        (STANDBY, None, None),
        (STANDBY._replace(timeline=None), SYSTEM, None),
        (STANDBY._replace(apart="it follows another history"), SYSTEM, None),
        (STANDBY._replace(primary=True), SYSTEM, None),
        (ReplicaReport(primary=False), SYSTEM, None),
        (ReplicaReport(), None, None),
        (
            ReplicaReport(gtids={"0": 9, "3": 4}, applied={"0": 7, "3": 4}),
            None,
            LogPosition(0, 0, {0: 7, 3: 4}),
        ),
        (ReplicaReport(gtids={"0": 9}), None, None),
    ],
)
def test_replica(
    report: ReplicaReport, system: int | None, expected: LogPosition | None
) -> None:
    """A replica's report becomes a position if nothing is missing of it."""
    assert from_replica_report(report, system) == expected


WRITING = PrimaryReport(
    standby=False, system_identifier=SYSTEM, timeline=3, position={"": 9000}
)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (WRITING, LogPosition(CLUSTER, 3, {0: 9000})),
        (WRITING._replace(standby=True), None),
        (WRITING._replace(system_identifier=None), None),
        (WRITING._replace(timeline=None), None),
        (WRITING._replace(position=None), None),
        (PrimaryReport(), None),
        (
            PrimaryReport(standby=False, position={"0": 270}),
            LogPosition(0, 0, {0: 270}),
        ),
    ],
)
def test_primary(report: PrimaryReport, expected: LogPosition | None) -> None:
    """A primary's report becomes a position if nothing is missing of it."""
    assert from_primary_report(report) == expected


def test_uuids() -> None:
    """MySQL's streams are digests of 48 bits, by server and tag, in any spelling."""
    names = (UUID, UUID.upper(), f"{UUID}:tag", UUID.replace("3", "4"))
    streams = []
    for name in names:
        found = from_replica_report(ReplicaReport(applied={name: 5}), None)
        assert found is not None
        ((stream, number),) = found.streams.items()
        assert number == 5
        assert 0 <= stream < 2**48
        streams.append(stream)
    assert streams[0] == streams[1]
    assert len(set(streams)) == 3


DOCUMENT = Path(__file__).parents[2] / "docs" / "consistency.md"


def test_documented_example() -> None:
    """What the text registers is asked, as printed."""
    (code,) = re.findall(
        r"^```python\n(.*?register_positions.*?)^```",
        DOCUMENT.read_text().partition("### Another database")[2],
        re.MULTILINE | re.DOTALL,
    )
    exec(compile(code, DOCUMENT, "exec"), {})
    source = position_source("counting")
    assert source is not None
    connection = sqlite3.connect(":memory:")
    connection.create_function("committed", 0, lambda: 5)
    connection.create_function("applied", 0, lambda: 4)
    wanted = source.position(connection)
    shown = source.replayed(connection)
    connection.close()
    assert wanted == LogPosition(0, 0, {0: 5})
    assert shown == LogPosition(0, 0, {0: 4})


def test_documented_queries() -> None:
    """Every function, view and variable that is asked for is in the text."""
    text = DOCUMENT.read_text()
    queries = (
        sources._INSERTED + sources._REPLAYED + sources._WRITTEN + sources._APPLIED
    )
    asked = set(re.findall(r"pg_\w+|@@GLOBAL\.\w+", queries))
    plain = {"pg_wal_lsn_diff", "pg_is_in_recovery"}
    assert len(asked) == 11
    assert {name for name in asked if name not in text} == plain
