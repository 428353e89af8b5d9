"""Sentry sees the replicas' statements, their errors, and the ERROR lines."""

from __future__ import annotations

from typing import Any

import sentry_sdk
from sentry_sdk.transport import Transport
from sqlalchemy import select, text

from tests.integrations.shop import Shop

sent: list[dict[str, Any]] = []


class Kept(Transport):
    """Keeps what would be sent."""

    def capture_envelope(self, envelope: Any) -> None:
        """Keep it."""
        sent.extend(filter(None, (one.payload.json for one in envelope.items)))


def main() -> None:
    """Send statements to replicas, let one fail, and lose all replicas."""
    with Shop(
        "Sentry", SENTRY_DSN="http://key@127.0.0.1/1", PROPAGATE_EXCEPTIONS=False
    ) as shop:
        guest, db = shop.make_guest(), shop.db
        shop.run()
        sentry_sdk.get_client().transport = Kept()
        shop.app.add_url_rule(
            "/", "names", lambda: list(db.session.scalars(select(guest.name)))
        )
        shop.app.add_url_rule(
            "/bad",
            "bad",
            lambda: str(db.session.scalar(text("select name, from guest"))),
        )
        shop.start()
        with shop.counted() as served:
            assert shop.client().get("/").json == ["Ada", "Bob"]
            assert shop.client().get("/bad").status_code == 500
        assert served == {"replica": 2}, served
        with shop.app.app_context():
            for name in ("slave_1", "slave_2"):
                shop.replicated.pool().drain(name)
        assert shop.client().get("/").status_code == 200
        sentry_sdk.flush()

    spans = [span for one in sent for span in one.get("spans", ())]
    asked = [span["description"] for span in spans if span["op"] == "db"]
    assert "select name, from guest" in asked
    assert len(asked) == 3, asked
    errors = [one for one in sent if one.get("level") == "error"]
    said = [one.get("logentry", {}).get("message", "") for one in errors]
    assert any("every replica is out" in line for line in said), said
    raised = [
        one["exception"]["values"][-1]["value"] for one in errors if "exception" in one
    ]
    assert any("syntax error" in value for value in raised), raised


if __name__ == "__main__":
    main()
