"""The README's code, executed as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
    assert app.test_client().get("/").json == ["Ada"]
assert served == {"slave_1": 5, "slave_2": 5}, served
"""


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
