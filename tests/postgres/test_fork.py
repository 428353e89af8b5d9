"""Applications that are built before a server forks its workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flask_replicated.system.forks import UNTOLD
from tests.postgres.forked import HUNG
from tests.postgres.support import STANDBYS, bind

if TYPE_CHECKING:
    from examples.cluster import Cluster
    from tests.postgres.support import Build

pytestmark = pytest.mark.postgres

# Newer Pythons warn of a fork while the probe has a thread.
_QUIET = ("-W", "ignore:This process:DeprecationWarning")


@pytest.mark.parametrize("how", ["told", "untold"])
def test_fork(build: Build, healthy_cluster: Cluster, driver: str, how: str) -> None:
    """Parent and child both serve after a fork, and share no connection.

    Also where Python was not told of the fork; then a warning says so, once.
    """
    servers = (healthy_cluster.primary, *healthy_cluster.standbys)
    urls = [bind(server, driver) for server in servers]
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, *_QUIET, "-m", "tests.postgres.forked", how, *urls],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if run.returncode != HUNG:
            break
        healthy_cluster.primary.execute("delete from item")
    warned = [UNTOLD] if how == "untold" else []
    # Python 3.13's own word on threads that are not in the child.
    said = [one for one in run.stderr.splitlines() if "detach_thread" not in one]
    assert (run.returncode, said) == (0, warned)
    report = json.loads(run.stdout)
    assert report["status"] == 0
    assert report["child"]["probes"]
    used = {}
    for phase in ("before", "child", "together", "after"):
        assert report[phase]["servers"] == sorted([*STANDBYS, *STANDBYS])
        used[phase] = {tuple(backend) for backend in report[phase]["backends"]}
    assert used["before"] == used["together"] == used["after"]
    assert not used["child"] & used["before"]
    direct = {tuple(backend) for backend in report["child"]["direct"]}
    assert len(direct) == 2
    assert not direct & used["before"]
    rows = healthy_cluster.primary.execute("select text from item")
    assert sorted(text for (text,) in rows) == ["after", "before", "child", "together"]
