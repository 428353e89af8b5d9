"""An application with a control place, for the workers of ``tests/test_workers.py``.

The environment has its folder and its control place. Every answer says how many looks
at the control place its process has ended, so that time is told in looks.
"""

from __future__ import annotations

import json
import os
from typing import Any

from flask import Flask, jsonify
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from flask_replicated import FlaskReplicated
from flask_replicated.operations.control import CONTROL

CONFIG = json.loads(os.environ["CONTROLLED"])

app = Flask(CONFIG["name"])
app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{CONFIG['folder']}/master.db"
app.config["SQLALCHEMY_BINDS"] = {
    name: f"sqlite:///{CONFIG['folder']}/{name}.db" for name in ("slave_1", "slave_2")
}
app.config["REPLICATED_CONTROL"] = CONFIG["control"]
app.config["REPLICATED_PROBE_INTERVAL"] = 0.3
db = SQLAlchemy(app)
replicated = FlaskReplicated(app)
control = app.extensions[CONTROL]
look_now, looks = control.look_now, 0


def look_and_count() -> None:
    """Look, and count it once it has ended."""
    global looks  # noqa: PLW0603 - of this process
    look_now()
    looks += 1


control.look_now = look_and_count


def here(**what: Any) -> Any:
    """Return an answer of this process."""
    return jsonify(pid=os.getpid(), looks=looks, **what)


@app.get("/own")
def own() -> Any:
    """Tell which process this is, and what it knows, without a read."""
    members = replicated.snapshot()[None].members
    return here(states={one.name: one.state for one in members})


@app.get("/read")
def read() -> Any:
    """Tell who serves a read."""
    return here(name=db.session.scalar(text("SELECT name FROM marker")))
