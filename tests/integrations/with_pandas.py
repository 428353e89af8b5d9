"""pandas reads where the request does, and writes where it is told to."""

from __future__ import annotations

from contextlib import nullcontext

import pandas as pd
import pytest
from sqlalchemy import select

from flask_replicated import WriteOnReplicaError, using_slave
from tests.integrations.shop import Shop


def main() -> None:
    """Read by engine and by session, and write."""
    with Shop("pandas") as shop:
        guest, db = shop.make_guest(), shop.db
        shop.run()
        shop.app.add_url_rule("/wrong", "wrong", lambda: _write(db.engine))
        shop.app.add_url_rule(
            "/right", "right", lambda: _write(db.engine), methods=["POST"]
        )

        @shop.app.get("/connection")
        def by_connection() -> dict[str, list[str]]:
            read = pd.read_sql(select(guest.name), db.session.connection())
            return dict(read.to_dict("list"))

        shop.start()
        for path, server in (
            ("/by-engine", "replica"),
            ("/by-session", "replica"),
            ("/connection", "primary"),
        ):
            with shop.counted() as served:
                answer = shop.client().get(path).json
            assert answer == {"name": ["Ada", "Bob"]}
            assert set(served) == {server}, (path, served)
        for block, server in ((nullcontext, "primary"), (using_slave, "replica")):
            with shop.app.app_context(), shop.counted() as served, block():
                pd.read_sql(select(guest.name), db.engine)
            assert set(served) == {server}, served
        assert shop.client().get("/import").status_code == 204
        assert shop.client().post("/right").status_code == 204
        with pytest.raises(WriteOnReplicaError, match=r"db\.engine\.begin\(\)"):
            shop.client().get("/wrong")
        client = shop.client()
        client.get("/import")
        assert client.get_cookie("replicated_pin") is not None


def _write(engine: object) -> tuple[str, int]:
    frame = pd.DataFrame({"name": ["Di"]})
    frame.to_sql("guest", engine, if_exists="append", index=False)
    return "", 204


if __name__ == "__main__":
    main()
