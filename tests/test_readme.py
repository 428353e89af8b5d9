"""The README's code, executed as printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.request import HTTPCookieProcessor, build_opener

from examples.cluster import wait_until
from examples.servers import free_port
from tests.pgbouncer import listens

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

CHECK = """
from collections import Counter
from sqlalchemy import Engine, event

with app.app_context():
    db.create_all()
    db.session.add(Guest(name="Ada"))
    db.session.commit()
    served = Counter()
    for name in ("slave_1", "slave_2"):
        event.listen(
            db.engines[name],
            "before_cursor_execute",
            lambda *_, name=name: served.update([name]),
        )
for _ in range(10):
    answer = app.test_client().get("/").json
    assert answer == {"guests": ["Ada"], "served by": "replica"}, answer
# Two statements each.
assert served == {"slave_1": 10, "slave_2": 10}, served
"""
# What is typed, and what is printed then.
ASKED = re.compile(
    r"^\$ curl (?:-[bc] (\w+) )?(?:-d (\S+) )?http://127\.0\.0\.1:5000(\S+)\n(.+)$",
    re.MULTILINE,
)


def test_quickstart_comes_early_and_is_short() -> None:
    """The first code stands by line 25 and takes at most 20 lines."""
    text = README.read_text()
    first = BLOCK.search(text)
    assert first is not None
    assert text[: first.start(1)].count("\n") <= 25
    assert len([line for line in first[1].splitlines() if line.strip()]) <= 20


def test_code_runs_as_printed(tmp_path: Path) -> None:
    """All of the README's code runs, and the quickstart's reads take turns."""
    blocks = BLOCK.findall(README.read_text())
    program = tmp_path / "program.py"
    program.write_text("\n".join([*blocks, CHECK]))
    subprocess.run(
        [sys.executable, "-W", "error", program], cwd=tmp_path, check=True, timeout=60
    )


def ask(url: str, form: str, jar: CookieJar) -> bytes:
    """Return the body of an answer to a form, or to a GET if there is none."""
    opener = build_opener(HTTPCookieProcessor(jar))
    with opener.open(url, data=form.encode() or None, timeout=10) as response:
        body: bytes = response.read()
        return body


def test_quickstart_runs_as_typed(tmp_path: Path) -> None:
    """The first code, saved and run as the text says, answers as it prints."""
    text = README.read_text()
    quickstart = BLOCK.findall(text)[0]
    name = quickstart.partition("\n")[0].removeprefix("# ")
    assert f"Save it as `{name}`" in text
    assert f"$ flask --app {Path(name).stem} run" in text
    (tmp_path / name).write_text(quickstart)
    asked = ASKED.findall(text)
    assert {json.loads(answer)["served by"] for *_, answer in asked} == {
        "replica",
        "primary",
    }
    port = free_port()
    command = ["-m", "flask", "--app", Path(name).stem, "run", "--port", str(port)]
    with subprocess.Popen([sys.executable, *command], cwd=tmp_path) as process:
        try:
            wait_until(lambda: listens(port), "Flask to listen", timeout=30)
            jars = {name: CookieJar() for name, *_ in asked if name}
            for name, form, path, answer in asked:
                url = f"http://127.0.0.1:{port}{path}"
                found = ask(url, form, jars.get(name, CookieJar()))
                assert json.loads(found) == json.loads(answer)
        finally:
            process.terminate()
