"""The application: registers that are read all at once and written one by one."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from flask_replicated import FlaskReplicated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Response

__all__ = ["ENVIRONMENT", "create_app", "served"]

ENVIRONMENT: Final = "CONSISTENCY_CONFIG"

# How a server is asked for its name.
_NAMES: Final = {
    "postgresql": "current_setting('cluster_name')",
    "mariadb": "@@report_host",
}


def create_app(config: Mapping[str, Any]) -> Flask:
    """Return the application over a primary and replicas.

    ``GET /`` tells the versions of all registers and who answered; with ``hold`` it
    looks again after so many seconds. ``POST /3`` adds one to the version of register
    3, and tells the new one.
    """
    app = Flask("consistency")
    app.config.update(config)
    app.config["REPLICATED_PIN_KEY"] = lambda: request.headers.get("X-User")
    db = SQLAlchemy(app)
    columns = {
        "id": db.Column(db.Integer, primary_key=True),
        "version": db.Column(db.Integer, nullable=False),
    }
    register: Any = type("Register", (db.Model,), columns)
    FlaskReplicated(app)
    with app.app_context():
        name = _NAMES[db.engine.dialect.name]
    looks = text(f"select {name}, version from register order by id")

    def look() -> dict[str, Any]:
        rows = db.session.execute(looks).all()
        return {"server": rows[0][0], "versions": [version for _, version in rows]}

    @app.get("/")
    def show() -> Response:
        found = [look()]
        if "hold" in request.args:
            time.sleep(float(request.args["hold"]))
            found.append(look())
        return jsonify(pid=os.getpid(), looks=found)

    @app.post("/<int:number>")
    def write(number: int) -> Response:
        row = db.get_or_404(register, number, with_for_update=True)
        row.version = version = row.version + 1
        db.session.commit()
        return jsonify(pid=os.getpid(), version=version)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> tuple[Response, int]:
        cause = " ".join(str(error).split())[:200]
        return jsonify(pid=os.getpid(), error=f"{type(error).__name__}: {cause}"), 500

    return app


def served() -> Flask:
    """Return the application that the environment describes, for a WSGI server."""
    return create_app(json.loads(os.environ[ENVIRONMENT]))
