"""GraphQL's queries read from replicas, and its mutations use the primary."""

from __future__ import annotations

from typing import Any

import strawberry
from sqlalchemy import select
from strawberry.flask.views import GraphQLView

from tests.integrations.shop import Shop

QUERY = "query Names { names }"
MUTATION = 'mutation Add { add(name: "Cy") }'
CASES: tuple[tuple[object, str], ...] = (
    ({"query": "{ names }"}, "replica"),
    ({"query": "# mutation\n" + QUERY}, "replica"),
    ({"query": MUTATION}, "primary"),
    ({"query": f"{QUERY} {MUTATION}", "operationName": "Names"}, "replica"),
    ({"query": f"{QUERY} {MUTATION}", "operationName": "Add"}, "primary"),
)
BROKEN: tuple[object, ...] = ({"query": "{ names"}, {"query": 7}, {}, [])


def serve(shop: Shop) -> None:
    """Let the shop speak GraphQL."""
    guest, db = shop.make_guest(), shop.db

    class Query:
        @strawberry.field
        def names(self) -> list[str]:
            return list(db.session.scalars(select(guest.name)))

    class Mutation:
        @strawberry.mutation
        def add(self, name: str) -> str:
            db.session.add(guest(name=name))
            db.session.commit()
            return name

    schema = strawberry.Schema(strawberry.type(Query), strawberry.type(Mutation))
    view: Any = GraphQLView.as_view("graphql", schema=schema)
    shop.app.add_url_rule("/graphql", view_func=view)


def main() -> None:
    """Send queries and mutations, alone and side by side, and what is neither."""
    with Shop("GraphQL") as shop:
        is_read = shop.run()["is_read"]
        serve(shop)
        shop.start()
        for body, expected in CASES:
            with shop.counted() as served:
                answer = shop.client().post("/graphql", json=body).json
            assert answer is not None
            assert "errors" not in answer, answer
            assert set(served) == {expected}, (body, served)
        for body in BROKEN:
            context = shop.app.test_request_context(
                "/graphql", method="POST", json=body
            )
            assert not is_read(context.request), body
        assert is_read(shop.app.test_request_context("/other").request) is None


if __name__ == "__main__":
    main()
