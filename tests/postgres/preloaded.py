"""An application that has read before its server forks, for ``gunicorn --preload``.

The environment has the URLs of the primary and of its standbys, and says whether
threads are greenlets.
"""

# ruff: noqa: E402 - with greenlets, everything that is imported later must find them
from __future__ import annotations

import json
import os

CONFIG = json.loads(os.environ["PRELOADED"])
if CONFIG["greenlets"]:
    from gevent import monkey

    monkey.patch_all()

import threading
from typing import TYPE_CHECKING, Any

from flask import jsonify

from examples.cluster import wait_until
from tests.postgres.support import make_site

if TYPE_CHECKING:
    from flask import Response

primary, *standbys = CONFIG["urls"]
site = make_site(
    primary,
    {f"slave_{number}": url for number, url in enumerate(standbys, start=1)},
    REPLICATED_PROBE_INTERVAL=0.2,
)
app = site.app


def probing() -> list[int]:
    """Return the backends that this process's own monitor keeps, one on each server."""
    state: Any = app.extensions["replicated"].state(app)
    monitor = state.routes[None].monitor
    known = [] if monitor._loop is None else list(monitor._loop._known.values())
    found = [one.probe._connection for one in known if one.probe is not None]
    return [one.info.backend_pid for one in found if one is not None]


def reading() -> list[int]:
    """Read from every standby in turn, and return the backends that answered."""
    backends: list[int] = []
    for _ in standbys:
        with app.test_request_context():
            backends.append(site.who().pid)
    return backends


@app.get("/own")
def own() -> Response:
    """Tell which process this is, and what it has."""
    names = [thread.name for thread in threading.enumerate()]
    return jsonify(
        pid=os.getpid(),
        server=site.who().server,
        monitors=names.count("flask_replicated monitor"),
        probing=probing(),
        reading=[site.who().pid],
        parent=before,
    )


before = {"reading": reading()}
wait_until(lambda: len(probing()) == len(CONFIG["urls"]), "a probe of every server")
before["probing"] = probing()
