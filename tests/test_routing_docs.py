"""The code in ``docs/routing.md``, executed as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parent.parent / "docs" / "routing.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

CHECK = """
from sqlalchemy import event

seen = []

def listen(engine, role):
    event.listen(engine, "before_cursor_execute", lambda *_: seen.append(role))

def provide(connection, _record):
    connection.create_function("next_ticket", 0, lambda: 7)

for url in ("sqlite:///primary.db", "sqlite:///replica.db"):
    made = create_engine(url)
    with made.begin() as connection:
        db.metadata.create_all(connection)
        connection.execute(Guest.__table__.insert(), [{"name": "Ada"}])
        connection.execute(Account.__table__.insert(), [{"guest_id": 1}])
    made.dispose()

with app.app_context():
    assert {engine.url.database for engine in db.engines.values()} == files
    state = app.extensions["replicated"].state(app)
    listen(state.routes[None].real, "primary")
    event.listen(state.routes[None].real, "connect", provide)
    listen(db.engines["slave_1"], "replica")

def ask(path, method="GET", **options):
    seen.clear()
    response = app.test_client().open(path, method=method, **options)
    assert response.status_code == 200, response.text
    return response, list(dict.fromkeys(seen))

response, who = ask("/search", "POST")
assert (response.json, who) == (["Ada"], ["replica"])
assert ask("/balance")[1] == ["primary"]
assert ask("/ticket")[0].text == "7"
assert ask("/ticket")[1] == ["primary"]
response, who = ask("/arrive/Bob")
assert (response.json, who) == ([1, 2], ["replica", "primary"])
response, who = ask("/guest/1")
assert (response.text, who) == ("Ada", ["primary", "replica"])
assert not response.headers.getlist("Set-Cookie")
for _ in range(2):
    response, who = ask("/shout")
    assert (response.text, who) == ("ADA", ["replica"])
with app.app_context():
    assert db.session.scalar(text("SELECT shout('a')")) == "A"
response, who = ask("/export")
assert (response.text, who) == ("Ada\\n", ["replica"])
assert ask("/both")[1] == ["primary"]
response, who = ask("/account/1")
assert (response.json, who) == ([1], ["primary"])
assert ask("/unsubscribe/2")[1] == ["primary"]
with app.app_context():
    found = shares()
    assert set(found["replicas"]) == {"slave_1"}
    assert found["replicas"]["slave_1"] > 0
    assert found["primary"]["block"] > 0
    assert found["writers"] == ()
    seen.clear()
    assert nightly_report() == ["Ada"]
    assert set(seen) == {"replica"}
assert report() == ["Ada"]
for path in ("/", "/async"):
    assert small.test_client().get(path).json == ["Ada"]
assert small.test_client().get("/async-visit").text == "visited"
with app.test_request_context(
    "/graphql", method="POST", json={"query": "mutation { x }"}
) as context:
    assert is_read(context.request) is False
assert "slave_1" in str(engine.replicas.replica_pool.members)

import asyncio, gc
with small.app_context():
    engines = [*lite.async_engines.values()]
    for made in lite.engines.values():
        made.dispose()
    async def close():
        for made in engines:
            await made.dispose()
    asyncio.run(close())
with app.app_context():
    for made in db.engines.values():
        made.dispose()
engine.dispose()
"""


def test_code_runs_as_printed(tmp_path: Path) -> None:
    """All of the text's code runs, and its statements go where the text says."""
    pytest.importorskip("flask_sqlalchemy_lite")
    # One folder for all adapters: each of them has its own idea of a relative path.
    blocks = [
        block.replace(":///", f":///{tmp_path}/")
        for block in BLOCK.findall(DOCUMENT.read_text())
    ]
    check = CHECK.replace(":///", f":///{tmp_path}/")
    files = {str(tmp_path / f"{name}.db") for name in ("primary", "replica")}
    program = tmp_path / "program.py"
    program.write_text("\n".join([*blocks, f"files = {files}", check]))
    subprocess.run(
        [sys.executable, "-W", "error", program], cwd=tmp_path, check=True, timeout=60
    )
