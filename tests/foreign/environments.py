"""An environment for each suite: its sources, its libraries, and this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .applications import Application
    from .suites import Suite

__all__ = ["ApplicationEnvironment", "Environment", "Run", "cache"]

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
        share: The share of the reads that replicas have served, or would have.
    """

    outcomes: Mapping[str, str]
    reasons: Mapping[str, str] = field(default_factory=dict)
    routed_apps: int = 0
    replica_statements: int = 0
    share: float = 0.0


def cache() -> Path:
    """Return the folder that keeps the environments."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "flask_replicated" / "foreign"


class _Kept:
    """A virtual environment with this package in it, made once and kept.

    Args:
        folder: Its name in the folder that keeps them.
        interpreter: The Python that it is made with.
        home: That folder; the user's cache by default.

    Attributes:
        python: Its own Python.
    """

    def __init__(
        self, folder: str, interpreter: str = sys.executable, home: Path | None = None
    ) -> None:
        self._home = (home or cache()) / folder
        self._interpreter = interpreter
        self.python = self._home / "venv" / "bin" / "python"

    @contextmanager
    def _made(self, recipe: str) -> Iterator[bool]:
        """Return a block that makes what is not there yet; false if all of it is."""
        ready, recipe = self._home / "ready", f"{ROOT}\n{recipe}"
        if ready.is_file() and ready.read_text() == recipe:
            yield False
            return
        shutil.rmtree(self._home, ignore_errors=True)
        command = [self._interpreter, "-m", "venv", str(self._home / "venv")]
        subprocess.run(command, check=True)
        yield True
        ready.write_text(recipe)

    def _pip(self, *arguments: str) -> None:
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "-qq"]
        subprocess.run([*command, *arguments], check=True)


class Environment(_Kept):
    """A suite's own virtual environment and sources."""

    def __init__(self, suite: Suite, home: Path | None = None) -> None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        super().__init__(f"{suite.name}-{suite.version}-py{version}", home=home)
        self._suite = suite

    def prepare(self) -> None:
        """Download and install what is not there yet."""
        suite = self._suite
        with self._made(f"{suite.requirements}\n{suite.extras}") as missing:
            if missing:
                source, extras = self._download(), ",".join(suite.extras)
                wanted = f"{source}[{extras}]" if extras else str(source)
                own = ("--editable", str(ROOT))
                self._pip("install", *own, wanted, "pytest", *suite.requirements)

    def _download(self) -> Path:
        name = self._suite.name
        folder = self._home / "source"
        self._pip(
            *("download", "--no-deps", "--no-binary", name, "--dest", str(folder)),
            f"{name}=={self._suite.version}",
        )
        (archive,) = folder.iterdir()
        return archive

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
            return run_tests(self.python, tree, self._suite.arguments, options)


class ApplicationEnvironment(_Kept):
    """An application's own virtual environment and checkout.

    Args:
        application: The application.
        repository: Where it is cloned from, if not from its public place.

    Raises:
        RuntimeError: There is no Python that it runs on.

    Attributes:
        checkout: Its sources.
    """

    def __init__(self, application: Application, repository: str | None = None) -> None:
        version, interpreter = _interpreter(application.pythons)
        folder = f"{application.name}-{application.commit[:8]}-py{version}"
        super().__init__(folder, interpreter)
        self._application = application
        self._repository = repository or application.repository
        self.checkout = self._home / "source"

    def prepare(self) -> None:
        """Clone, mend and install what is not there yet."""
        with self._made(repr(self._application)) as missing:
            if missing:
                self._clone()
                wanted = [
                    one.format(checkout=self.checkout)
                    for one in self._application.requirements
                ]
                self._pip("install", "--editable", str(ROOT), *wanted)

    def _clone(self) -> None:
        clone = ["git", "clone", "--quiet", self._repository, str(self.checkout)]
        subprocess.run(clone, check=True)
        switch = ["git", "checkout", "--quiet", self._application.commit]
        subprocess.run(switch, cwd=self.checkout, check=True)
        mend(self.checkout, self._application)


def mend(checkout: Path, application: Application) -> None:
    """Mend what does not work with today's libraries in a checkout.

    Raises:
        ValueError: A place that is to be mended is not there once.
    """
    for one in application.mends:
        path = checkout / one.path
        text = path.read_text()
        if text.count(one.old) != 1:
            raise ValueError(f"{path} does not have {one.old!r} once")
        path.write_text(text.replace(one.old, one.new))
    if application.lazy_annotations is not None:
        for path in (checkout / application.lazy_annotations).rglob("*.py"):
            text = path.read_text()
            if "from __future__" not in text:
                path.write_text(f"from __future__ import annotations\n{text}")


def _interpreter(versions: tuple[str, ...]) -> tuple[str, str]:
    """Return the first version of Python that is there, and where."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in versions:
        places = sorted(map(str, pyenv.glob(f"{version}.*/bin/python{version}")))
        for place in (*places, shutil.which(f"python{version}")):
            # A shim of pyenv may be there though the version is not.
            if place and not subprocess.run([place, "-c", ""], check=False).returncode:
                return version, place
    raise RuntimeError(f"needs Python {' or '.join(versions)}")


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
