"""SQLAlchemy-Continuum writes versions on the primary, and reads them anywhere."""

from __future__ import annotations

from tests.integrations.shop import Shop


def main() -> None:
    """Write two versions and read them."""
    with Shop("SQLAlchemy-Continuum") as shop:
        page, db = shop.run()["Page"], shop.db

        @shop.app.post("/<text>")
        def write(text: str) -> str:
            found = db.session.get(page, 1) or page(id=1)
            found.text = text
            db.session.add(found)
            db.session.commit()
            return text

        @shop.app.get("/")
        def versions() -> list[str]:
            return [version.text for version in db.session.get_one(page, 1).versions]

        shop.start()
        for text in ("one", "two"):
            with shop.counted() as served:
                assert shop.client().post(f"/{text}").text == text
            assert set(served) == {"primary"}, served
        with shop.counted() as served:
            assert shop.client().get("/").json == ["one", "two"]
        assert set(served) == {"replica"}, served


if __name__ == "__main__":
    main()
