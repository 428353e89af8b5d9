"""Flask-Caching stores no pin, and is filled from the primary where that matters."""

from __future__ import annotations

from flask import Response, make_response

from tests.integrations.shop import Shop


def main() -> None:
    """Fill, hit and empty a cache."""
    with Shop("Flask-Caching") as shop:
        guest, db = shop.make_guest(), shop.db
        names = shop.run()
        cache, remembered = names["cache"], names["names"]
        shop.app.add_url_rule("/names", "names", remembered)

        def stored(name: str) -> Response:
            db.session.add(guest(name=name))
            db.session.commit()
            return make_response(name)

        shop.app.add_url_rule("/stored/<name>", "stored", cache.cached()(stored))
        shop.start()
        for expected in ({"primary": 1}, {}):
            with shop.counted() as served:
                assert shop.client().get("/names").json == ["Ada", "Bob"]
            assert served == expected, served
        assert shop.client().post("/guests/Cy").status_code == 204
        assert shop.client().get("/names").json == ["Ada", "Bob", "Cy"]
        writer, other = shop.client(), shop.client()
        with shop.counted() as served:
            assert writer.get("/stored/Di").text == other.get("/stored/Di").text == "Di"
        assert served == {"primary": 1}, served
        assert writer.get_cookie("replicated_pin") is not None
        assert other.get_cookie("replicated_pin") is None


if __name__ == "__main__":
    main()
