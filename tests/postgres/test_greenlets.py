"""An application whose threads are greenlets of gevent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gevent", reason="gevent is not installed")

from tests.postgres.support import bind

if TYPE_CHECKING:
    from examples.cluster import Cluster
    from tests.postgres.support import Build

ROOT = Path(__file__).parents[2]


@pytest.mark.postgres
@pytest.mark.parametrize("driver", ["psycopg"])
def test_dead_and_silent(build: Build, healthy_cluster: Cluster, driver: str) -> None:
    """Probes hold nobody up, dead and silent replicas are left out, and it ends."""
    standbys = healthy_cluster.standbys[:2]
    urls = [bind(server, driver) for server in (healthy_cluster.primary, *standbys)]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.postgres.cooperative", *urls],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline() or "{}")
        standbys[1].kill()
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert first["meanwhile"]
    assert first["first"].keys() <= {"standby_1", "standby_2", "primary"}
    last = json.loads(output)
    assert last == {"second": {"standby_1": 12}, "held": 0}


PATCHED_LATE = """
import sqlalchemy as sa
from flask_replicated import replicated_engine, using_slave
from gevent import monkey

primary = sa.create_engine("sqlite:///{file}")
engine = replicated_engine(primary, {{"slave_1": sa.create_engine(primary.url)}})
with primary.connect() as connection:
    connection.exec_driver_sql("CREATE TABLE t (id INTEGER)")
monkey.patch_all()
with using_slave(), engine.connect() as connection:
    connection.execute(sa.text("SELECT 1"))
print(type(engine.monitor._loop._done).__module__.partition(".")[0])
"""


def test_patched_late(tmp_path: Path) -> None:
    """What the monitor waits on is gevent's, though gevent came after the import."""
    run = subprocess.run(
        [sys.executable, "-c", PATCHED_LATE.format(file=tmp_path / "shop.db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "gevent\n"), run.stderr
