"""A setting that ends with its transaction costs no connection; another leaves none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, false, func, literal_column, select, text, true

from tests.postgres.support import bind

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.sql import Executable

    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

NAME = "shop.visitor"


def by_text(flag: str, **parameters: Any) -> Callable[[str], Executable]:
    """Return what calls it in a text whose third argument says this."""
    sql = text(f"select set_config(:name, :value, {flag})")
    return lambda who: sql.bindparams(name=NAME, value=who, **parameters)


LOCAL: dict[str, Callable[[str], Executable]] = {
    "construct": lambda who: select(func.set_config(NAME, who, True)),
    "true()": lambda who: select(func.set_config(NAME, who, true())),
    "with columns": lambda who: select(
        literal_column("7"), func.set_config(NAME, who, True).label("set")
    ),
    "string": by_text("'t'"),
    "parameter": by_text(":here", here=True),
    "cast": by_text("cast(:here as boolean)", here="on"),
    "twice": lambda who: text(
        "select set_config('shop.x', 'y', true), set_config(:name, :value, 1::bool)"
    ).bindparams(name=NAME, value=who),
    "set local": lambda who: text(f"set local {NAME} = '{who}'"),
    "set constraints": lambda who: text(
        f"set constraints all deferred; set local {NAME} = '{who}'"
    ),
}
LASTING: dict[str, Callable[[str], Executable]] = {
    "construct": lambda who: select(func.set_config(NAME, who, False)),
    "false()": lambda who: select(func.set_config(NAME, who, false())),
    "string": by_text("'f'"),
    "parameter": by_text(":here", here=False),
    "cast": by_text("cast(:here as boolean)", here="off"),
    "hidden": lambda who: select(
        select(func.set_config(NAME, who, False)).scalar_subquery(),
        func.set_config("shop.x", "y", True),
    ),
    "set": lambda who: text(f"set {NAME} = '{who}'"),
}


class Visits:
    """GETs that each set who visits, and see what is set."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._client = site.client()
        self.setting: Executable | None = None
        site.app.add_url_rule("/visit", "visit", self._view)

    def _view(self) -> dict[str, Any]:
        found = select(
            func.current_setting(NAME, True), func.pg_backend_pid()
        ).add_columns(func.pg_is_in_recovery())
        visitor, backend, replica = self._site.db.session.execute(found).one()
        return {"visitor": visitor or "", "backend": backend, "replica": replica}

    def __call__(self, setting: Executable | None = None) -> dict[str, Any]:
        """Return what a visit sees."""
        self.setting = setting
        response = self._client.get("/visit")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.get_json()
        return found


@pytest.fixture
def visits(build: Build, healthy_cluster: Cluster, driver: str) -> Visits:
    """Give visits to one standby, where the application decides for replicas."""
    one = {"url": bind(healthy_cluster.standbys[0], driver), "pool_size": 1}
    site = build({"slave_1": one})

    def set_on_begin(_session: object, _transaction: object, connection: Any) -> None:
        if made.setting is not None:
            connection.execute(made.setting)
            made.setting = None

    event.listen(site.db.session, "after_begin", set_on_begin)
    made = Visits(site)
    return made


@pytest.mark.parametrize("form", LOCAL)
def test_local(visits: Visits, form: str) -> None:
    """It is there for its own transaction, on a connection that is kept."""
    seen = [visits(LOCAL[form](who)) for who in "abcab"]
    assert [one["visitor"] for one in seen] == list("abcab")
    assert all(one["replica"] for one in seen)
    assert len({one["backend"] for one in seen}) == 1
    after = visits()
    assert (after["visitor"], after["backend"]) == ("", seen[0]["backend"])


@pytest.mark.parametrize("form", LASTING)
def test_lasting(visits: Visits, form: str) -> None:
    """One that lasts is gone for the next visitor, with its connection."""
    assert visits(LASTING[form]("a"))["replica"]
    assert visits()["visitor"] == ""


@pytest.mark.parametrize("local", [True, False])
def test_when_a_transaction_begins(
    build: Build, healthy_cluster: Cluster, driver: str, local: bool
) -> None:
    """What a listener sets on the engine as a transaction begins is judged alike."""
    one = {"url": bind(healthy_cluster.standbys[0], driver), "pool_size": 1}
    site = build({"slave_1": one})
    visitors = ["a", "", ""]
    with site.app.app_context():
        engine = site.db.engines["slave_1"]

    def set_visitor(connection: Any) -> None:
        visitor = visitors.pop(0)
        if visitor:
            setting = select(func.set_config(NAME, visitor, local))
            connection.execute(setting)

    event.listen(engine, "begin", set_visitor)
    visit = Visits(site)
    seen = [visit() for _ in range(3)]
    assert [one["visitor"] for one in seen] == ["a", "", ""]
    assert len({one["backend"] for one in seen}) == (1 if local else 2)
