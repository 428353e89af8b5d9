"""Threads that go on in the background, apart from the request that starts them."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import logging, threading
import sentry_sdk
from opentelemetry.instrumentation import utils
from sentry_sdk.transport import Transport

from flask_replicated.system.threads import start_thread

sent = []

class Kept(Transport):
    def capture_envelope(self, envelope):
        sent.extend(one.payload.json for one in envelope.items)

def work():
    found["traced"] = utils.is_instrumentation_enabled()
    found["span"] = sentry_sdk.get_current_span()
    logging.getLogger("somewhere").error("noise")
    done.set()

found, done = {}, threading.Event()
sentry_sdk.init(dsn="http://k@127.0.0.1/1", transport=Kept, traces_sample_rate=1.0)
with sentry_sdk.isolation_scope() as scope:
    scope.set_user({"id": "ann"})
    with sentry_sdk.start_transaction(name="request"):
        assert start_thread("test", work)
        assert done.wait(30)
        assert utils.is_instrumentation_enabled()
sentry_sdk.flush()
assert found == {"traced": False, "span": None}, found
(event,) = [one for one in sent if one.get("level") == "error"]
assert "ann" not in str(event), event
assert event.get("transaction") is None, event
"""


def test_apart_from_a_request() -> None:
    """OpenTelemetry has no spans of it, and Sentry blames nothing on the request."""
    for library in ("sentry_sdk", "opentelemetry.instrumentation"):
        pytest.importorskip(library)
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
