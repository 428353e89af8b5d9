"""Row-level security holds on every server, by ``after_begin``."""

from __future__ import annotations

from flask import g, request
from sqlalchemy import make_url, select, text

from examples.cluster import Cluster
from tests.integrations.shop import Shop

TENANT = "current_setting('app.tenant', true)"
SCHEMA = (
    "create role shop login",
    "create table guest (id serial primary key, name text, tenant text)",
    f"alter table guest alter tenant set default {TENANT}",
    "alter table guest enable row level security",
    f"create policy own on guest using (tenant = {TENANT})",
    "grant all on guest, guest_id_seq to shop",
    "insert into guest (name, tenant) values ('Ada', 'a'), ('Bob', 'b')",
)


def views(shop: Shop) -> None:
    """Let each request be one tenant's, and read and write."""
    guest, db = shop.make_guest(), shop.db
    shop.guest = None  # its table is there

    @shop.app.before_request
    def who() -> None:
        g.tenant = request.args["tenant"]

    @shop.app.get("/")
    def names() -> list[str]:
        return list(db.session.scalars(select(guest.name).order_by(guest.id)))

    @shop.app.post("/<name>")
    def add(name: str) -> list[str]:
        db.session.add(guest(name=name))
        db.session.commit()
        return names()


def set_early(shop: Shop) -> None:
    """Set the tenant as people do at first, in ``before_request``."""
    setting = text("select set_config('app.tenant', :tenant, true)")

    @shop.app.before_request
    def early() -> None:
        shop.db.session.execute(setting, {"tenant": g.tenant})


def check(shop: Shop) -> None:
    """Each tenant sees its own rows, before and after its writes."""
    client = shop.client()
    for tenant, expected in (("a", ["Ada"]), ("b", ["Bob"])) * 2:
        with shop.counted() as served:
            response = shop.client().get("/", query_string={"tenant": tenant})
        assert response.json == expected, response.text
        assert set(served) == {"replica"}, served
    wrote = client.post("/Cy", query_string={"tenant": "a"})
    assert wrote.json == ["Ada", "Cy"], wrote.text
    assert client.get("/", query_string={"tenant": "b"}).json == ["Bob"]


def main() -> None:
    """Serve two tenants from a primary and its standby."""
    with Cluster(standbys=1) as cluster:
        for statement in SCHEMA:
            cluster.primary.execute(statement)
        cluster.wait_replicated()
        primary, replica = (
            make_url(server.url()).set(username="shop").render_as_string()
            for server in (cluster.primary, *cluster.standbys)
        )
        with Shop("Row-level security", primary, replica) as shop:
            views(shop)
            shop.run()
            shop.start()
            check(shop)
        with Shop("Row-level security", primary, replica) as shop:
            views(shop)
            set_early(shop)
            shop.start()
            tenant = {"tenant": "a"}
            with shop.counted() as served:
                shop.client().get("/", query_string=tenant)
            assert set(served) == {"primary"}, served
            # The setting has ended with the commit.
            assert shop.client().post("/Di", query_string=tenant).json == []


if __name__ == "__main__":
    main()
