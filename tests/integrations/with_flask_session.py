"""Flask-Session commits at each request, pins nobody for it, and never reads stale."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from flask import session
from sqlalchemy import create_engine, select

from tests.integrations.shop import Shop


def main() -> None:
    """Count visits in the session, while the replicas never catch up."""
    with (
        TemporaryDirectory() as folder,
        Shop("Flask-Session", replica=f"sqlite:///{folder}/old.db") as shop,
    ):
        guest, db = shop.make_guest(), shop.db
        shop.run()

        @shop.app.get("/")
        def visit() -> list[object]:
            session["visits"] = session.get("visits", 0) + 1
            return [session["visits"], *db.session.scalars(select(guest.name))]

        @shop.app.post("/<name>")
        def write(name: str) -> str:
            db.session.add(guest(name=name))
            db.session.commit()
            return name

        shop.start()
        old = create_engine(f"sqlite:///{folder}/old.db")
        db.metadata.create_all(old)
        old.dispose()
        client = shop.client()
        for visits in range(1, 4):
            with shop.counted() as served:
                response = client.get("/")
            assert response.json == [visits], response.text
            assert served["replica"] == 1, served
            assert client.get_cookie("replicated_pin") is None
        client.post("/Cy")
        assert client.get_cookie("replicated_pin") is not None
        with shop.counted() as served:
            assert client.get("/").json == [4, "Ada", "Bob", "Cy"]
        assert served["replica"] == 0, served


if __name__ == "__main__":
    main()
