"""An environment for each suite: its sources, its libraries, and this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .suites import Suite

__all__ = ["Environment", "Run", "cache"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Run:
    """What one run of a suite has found.

    Attributes:
        outcomes: How each test has ended, by its id.
        reasons: The message of each test that failed.
        routed_apps: How many applications got replicas.
        replica_statements: How many statements replicas have served.
    """

    outcomes: Mapping[str, str]
    reasons: Mapping[str, str] = field(default_factory=dict)
    routed_apps: int = 0
    replica_statements: int = 0


def cache() -> Path:
    """Return the folder that keeps the environments."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "flask_replicated" / "foreign"


class Environment:
    """A suite's own virtual environment and sources, made once and kept."""

    def __init__(self, suite: Suite, home: Path | None = None) -> None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        folder = f"{suite.name}-{suite.version}-py{version}"
        self._suite = suite
        self._home = (home or cache()) / folder
        self._python = self._home / "venv" / "bin" / "python"

    def prepare(self) -> None:
        """Download and install what is not there yet."""
        ready = self._home / "ready"
        recipe = f"{ROOT}\n{self._suite.requirements}\n{self._suite.extras}"
        if ready.is_file() and ready.read_text() == recipe:
            return
        shutil.rmtree(self._home, ignore_errors=True)
        venv.create(self._home / "venv", with_pip=True)
        source = self._download()
        extras = ",".join(self._suite.extras)
        wanted = f"{source}[{extras}]" if extras else str(source)
        self._pip(
            "install",
            "--editable",
            str(ROOT),
            wanted,
            "pytest",
            *self._suite.requirements,
        )
        ready.write_text(recipe)

    def _download(self) -> Path:
        name = self._suite.name
        folder = self._home / "source"
        self._pip(
            *("download", "--no-deps", "--no-binary", name, "--dest", str(folder)),
            f"{name}=={self._suite.version}",
        )
        (archive,) = folder.iterdir()
        return archive

    def _pip(self, *arguments: str) -> None:
        command = [str(self._python), "-m", "pip", "--disable-pip-version-check", "-qq"]
        subprocess.run([*command, *arguments], check=True)

    def run(self, *options: str) -> Run:
        """Run the suite over fresh sources with the given options of the plugin.

        Raises:
            RuntimeError: The suite could not be run.
        """
        with TemporaryDirectory(prefix="foreign-", ignore_cleanup_errors=True) as place:
            (archive,) = (self._home / "source").iterdir()
            with tarfile.open(archive) as packed:
                packed.extractall(place, filter="data")
            (tree,) = Path(place).iterdir()
            return run_tests(self._python, tree, self._suite.arguments, options)


def run_tests(
    python: Path, tree: Path, arguments: tuple[str, ...], options: tuple[str, ...]
) -> Run:
    """Run the tests of a source tree with another Python.

    Args:
        python: The interpreter of an environment that has this package.
        tree: The source tree; the run may leave files in it.
        arguments: What pytest is given for this suite.
        options: What the plugin is given.

    Raises:
        RuntimeError: There is no outcome of any test.
    """
    outcomes = tree / "foreign-outcomes.json"
    log = tree / "foreign-log.txt"
    command = [str(python), "-m", "pytest", "-q", "-o", "addopts=", *arguments]
    command += ["-p", "plugin", f"--outcomes={outcomes}", *options]
    command += ["-p", "no:cacheprovider", "-p", "no:randomly"]
    with log.open("w") as output:
        done = subprocess.run(
            command,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONHASHSEED": "0"},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if not outcomes.is_file():
        tail = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{tree.name}: pytest ended with {done.returncode}:\n{tail}")
    return Run(**json.loads(outcomes.read_text()))
