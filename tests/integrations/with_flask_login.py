"""Flask-Login's users are read from a replica, and their visits pin nobody."""

from __future__ import annotations

from flask_login import current_user, login_required, login_user

from tests.integrations.shop import Shop


def main() -> None:
    """Sign in, and visit again and again."""
    with Shop("Flask-Login") as shop:
        shop.db.init_app(shop.app)
        names = shop.run()
        user, db = names["User"], shop.db

        @shop.app.post("/login")
        def login() -> str:
            login_user(db.session.get(user, 1))
            return "in"

        def me() -> str:
            return str(current_user.name)

        shop.app.add_url_rule("/me", "me", login_required(me))
        shop.start()
        with shop.app.app_context():
            db.session.add(user(name="Ada"))
            db.session.commit()
        client = shop.client()
        client.post("/login")
        assert client.get_cookie("replicated_pin") is None
        for _ in range(3):
            with shop.counted() as served:
                assert client.get("/me").text == "Ada"
            assert served["replica"] >= 1, served
            assert client.get_cookie("replicated_pin") is None
        with shop.app.app_context():
            assert db.session.get_one(user, 1).last_seen is not None


if __name__ == "__main__":
    main()
