"""Flask-Admin reads from replicas, and who has saved sees it."""

from __future__ import annotations

from tests.integrations.shop import Shop


def main() -> None:
    """List, edit, and list again."""
    with Shop("Flask-Admin") as shop:
        shop.make_guest()
        shop.run()
        shop.start()
        client = shop.client()
        for path in ("/admin/guest/", "/admin/guest/edit/?id=1"):
            with shop.counted() as served:
                assert "Ada" in client.get(path).text
            assert set(served) == {"replica"}, served
        with shop.counted() as served:
            response = client.post("/admin/guest/edit/?id=1", data={"name": "Eve"})
        assert (response.status_code, set(served)) == (302, {"primary"})
        with shop.counted() as served:
            assert "Eve" in client.get("/admin/guest/").text
        assert set(served) == {"primary"}, served


if __name__ == "__main__":
    main()
