"""Flask-Security signs in on the primary, and reads its users from replicas."""

from __future__ import annotations

from flask_security import auth_required, current_user, hash_password

from tests.integrations.shop import Shop


def main() -> None:
    """Sign in, and read as the one who has signed in."""
    with Shop(
        "Flask-Security",
        SECURITY_PASSWORD_HASH="plaintext",
        SECURITY_PASSWORD_SCHEMES=["plaintext"],
        SECURITY_PASSWORD_SALT="salt",
        SECURITY_TRACKABLE=True,
        WTF_CSRF_ENABLED=False,
    ) as shop:
        shop.db.init_app(shop.app)
        shop.replicated.init_app(shop.app)
        datastore = shop.run()["datastore"]

        @shop.app.get("/me")
        @auth_required("session")
        def me() -> str:
            return str(current_user.email)

        shop.start()
        given = {"email": "ada@example.org", "password": "secret"}
        with shop.app.app_context():
            known = {**given, "password": hash_password(given["password"])}
            datastore.create_user(**known)
            shop.db.session.commit()
        client = shop.client()
        assert client.post("/login", data=given).status_code == 302
        assert client.get_cookie("replicated_pin") is not None
        with shop.counted() as served:
            assert client.get("/me").text == given["email"]
        assert served["replica"] == 0, served
        client.delete_cookie("replicated_pin")
        with shop.counted() as served:
            assert client.get("/me").text == given["email"]
        assert set(served) == {"replica"}, served
        assert client.get_cookie("replicated_pin") is None


if __name__ == "__main__":
    main()
