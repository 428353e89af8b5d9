"""Requests, statements and models that ask for a database."""

from __future__ import annotations

import pickle
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from flask_replicated import (
    ConfigurationError,
    use_master_database,
    use_slave_database,
    using_slave,
)
from tests.support import (
    REPLICAS,
    Build,
    Site,
    answer,
    build_fixture,
    core,
    pin_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from flask import Request, Response

build = build_fixture


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


class Awaited:
    """Ways to ask that nobody awaits."""

    @staticmethod
    async def answer(request: Request) -> bool:
        """Be truthy all the same."""
        return False

    @staticmethod
    async def answers(request: Request) -> AsyncIterator[bool]:
        """Do so one after the other."""
        yield False

    async def asked(self, request: Request) -> bool:
        """Do so as a method."""
        return False

    async def __call__(self, request: Request) -> bool:
        """Do so as an object."""
        return False


class TestIsRead:
    """``REPLICATED_IS_READ`` decides instead of the method."""

    @pytest.mark.parametrize(
        ("said", "method", "role"),
        [
            (True, "POST", "replica"),
            (False, "GET", "primary"),
            (None, "POST", "primary"),
            (None, "GET", "replica"),
        ],
    )
    def test_answer(
        self, build: Build, said: bool | None, method: str, role: str
    ) -> None:
        """True is a replica, False the primary, None leaves it to the method."""
        site = build(REPLICATED_IS_READ=lambda _: said)
        assert answer(site, site.role, method) == role

    @pytest.mark.parametrize("said", ["", "yes", 0, 1, object(), re.match("a", "a")])
    def test_other_answers(self, build: Build, said: object) -> None:
        """What is neither True, False nor None is no answer, as nearly all is true."""
        site = build(REPLICATED_IS_READ=lambda _: said)
        site.app.testing = True
        with pytest.raises(ConfigurationError, match="True, False or None") as caught:
            answer(site, site.role)
        assert caught.value.key == "REPLICATED_IS_READ(request)"
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    @pytest.mark.parametrize("kind", ["function", "method", "call", "partial", "each"])
    def test_is_not_awaited(self, build: Build, kind: str) -> None:
        """An async function is refused at the start: what it returns is always true."""
        kinds: dict[str, object] = {
            "function": Awaited.answer,
            "method": Awaited().asked,
            "call": Awaited(),
            "partial": partial(partial(Awaited.answer)),
            "each": Awaited.answers,
        }
        with pytest.raises(ConfigurationError, match="must not be async") as caught:
            build(REPLICATED_IS_READ=kinds[kind])
        assert caught.value.key == "REPLICATED_IS_READ"
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_awaits_in_disguise(self, build: Build) -> None:
        """A plain function that returns a coroutine is found out when it is asked."""
        site = build(REPLICATED_IS_READ=lambda request: Awaited().asked(request))
        site.app.testing = True
        with pytest.raises(ConfigurationError, match="True, False or None"):
            answer(site, site.role)

    def test_sees_the_request(self, build: Build) -> None:
        """It may look at the body, which the view can still read."""

        def is_read(request: Request) -> bool | None:
            query = request.get_json(silent=True) or {}
            return None if "query" not in query else query["query"][0] == "{"

        site = build(REPLICATED_IS_READ=is_read)

        def ask(query: str) -> str:
            return site.client().post("/", json={"query": query}).text

        assert ask("{ guests }") in REPLICAS
        assert ask("mutation { add }") == "master"
        assert site.client().post("/").text == "master"

    def test_asked_once(self, build: Build) -> None:
        """It is asked once in a request, at its first statement."""
        asked: list[str] = []

        def is_read(request: Request) -> bool:
            asked.append(request.path)
            return True

        site = build(REPLICATED_IS_READ=is_read)

        def view() -> str:
            assert asked == []
            roles = [site.role(), site.role()]
            site.write()
            return " ".join([*roles, site.role()])

        assert answer(site, view, "POST") == "replica replica primary"
        assert asked == ["/view"]
        assert site.entries() == ["written"]

    def test_decorators_are_stronger(self, build: Build) -> None:
        """It is not asked about a view that is decorated."""

        def is_read(_: Request) -> bool:
            raise AssertionError

        site = build(REPLICATED_IS_READ=is_read)
        rule = site.app.add_url_rule
        rule("/master", "m", use_master_database(site.role), methods=["GET", "POST"])
        rule("/slave", "s", use_slave_database(site.role), methods=["GET", "POST"])
        assert site.client().get("/master").text == "primary"
        assert site.client().post("/slave").text == "replica"

    def test_pin_is_stronger(self, build: Build) -> None:
        """A client that has just written reads its write, whatever is said."""
        site = build(REPLICATED_IS_READ=lambda _: True)
        client = site.client()
        assert pin_of(client.post("/write")) is not None
        assert client.post("/").text == "master"

    def test_kill_switch_is_stronger(self, build: Build) -> None:
        """AUTO_READ_ON_SLAVE = False means nothing automatic at all."""
        site = build(REPLICATED_IS_READ=lambda _: True, AUTO_READ_ON_SLAVE=False)
        assert site.client().get("/").text == "master"

    def test_its_errors(self, build: Build) -> None:
        """What it raises, the view's statement raises."""

        def is_read(_: Request) -> bool:
            raise LookupError("broken")

        site = build(REPLICATED_IS_READ=is_read)

        def view() -> str:
            with pytest.raises(LookupError, match="broken"):
                site.who()
            return "done"

        assert answer(site, view) == "done"


class TestPinStore:
    """Who keeps the times of writes elsewhere may have to ask the database."""

    class Stored:
        """Reads from the database when a client last wrote."""

        def __init__(self, read: Callable[[], Any]) -> None:
            self._read = read

        def remember(self, response: Response, token: str) -> None:
            """Remember nothing."""

        def recall(self, request: Request) -> str:
            """Read, and know nothing."""
            self._read()
            return ""

    @pytest.mark.parametrize("by", ["session", "engine"])
    def test_reads(self, build: Build, by: str) -> None:
        """What it reads is the primary's, and the request's reads are as they were."""
        found: list[str] = []

        def read() -> None:
            found.append(made.who() if by == "session" else core(made.db.engine))

        made = build(REPLICATED_PIN_STORE=self.Stored(read))
        for number in (1, 2, 3):  # from the second on the endpoint is known
            assert made.get() in REPLICAS
            assert found == ["master"] * number
        assert made.client().post("/write").text == "master"


class TestStatements:
    """``execution_options(replicated=...)``."""

    @pytest.mark.parametrize(
        ("option", "method", "role"),
        [
            ("master", "GET", "primary"),
            ("primary", "GET", "primary"),
            ("slave", "POST", "replica"),
            ("replica", "POST", "replica"),
        ],
    )
    def test_words(self, site: Site, option: str, method: str, role: str) -> None:
        """Both pairs of words are understood, and only that statement is meant."""

        def view() -> str:
            chosen = sa.select(site.marker.name)
            asked = chosen.execution_options(replicated=option)
            found = site.db.session.scalar(asked)
            plain = site.role()
            assert plain == ("replica" if method == "GET" else "primary")
            return "primary" if found == "master" else "replica"

        assert answer(site, view, method) == role

    @pytest.mark.parametrize("value", ["Master", "", "leader", 1, True])
    def test_wrong_word(self, site: Site, value: Any) -> None:
        """Another word is an error that says which would be right."""
        asked = sa.select(site.marker).execution_options(replicated=value)
        with (
            site.app.app_context(),
            pytest.raises(ConfigurationError, match="'master' or 'slave'"),
        ):
            site.db.session.scalars(asked)

    def test_refresh(self, site: Site) -> None:
        """An object is refreshed from where its statement has asked to be read."""

        def view() -> str:
            chosen = sa.select(site.marker).execution_options(replicated="master")
            found = site.db.session.scalars(chosen).one()
            site.db.session.refresh(found)
            name = found.name
            site.db.session.expire(found)
            return f"{name} {found.name} {site.role()}"

        assert answer(site, view) == "master master replica"

    def test_after_a_write(self, site: Site) -> None:
        """It is obeyed after a write too: whoever asks for a replica means it."""

        def view() -> str:
            site.write()
            asked = sa.select(site.marker.name).execution_options(replicated="slave")
            return f"{site.db.session.scalar(asked) in REPLICAS} {site.role()}"

        assert answer(site, view) == "True primary"

    def test_stronger_than_a_block(self, site: Site) -> None:
        """Inside using_slave() a statement may ask for the primary."""

        def view() -> str:
            asked = sa.select(site.marker.name).execution_options(replicated="master")
            with using_slave():
                return f"{site.db.session.scalar(asked)} {site.role()}"

        assert answer(site, view) == "master replica"


class TestModels:
    """``__replicated__``."""

    def test_model(self, site: Site) -> None:
        """A model that asks is read on the primary, and the rest is left alone."""
        site.marker.__replicated__ = "master"

        def view() -> str:
            who = site.role()
            site.db.session.rollback()
            other = site.db.session.scalar(sa.text("SELECT name FROM marker"))
            return f"{who} {other in REPLICAS}"

        assert answer(site, view) == "primary True"

    def test_subclasses(self, site: Site) -> None:
        """A model inherits what its base asks for, as it inherits attributes."""
        model: Any = site.db.Model
        model.__replicated__ = "master"
        assert answer(site, site.role) == "primary"

    def test_wrong_word(self, site: Site) -> None:
        """Another word is an error that names the model."""
        site.marker.__replicated__ = "leader"
        with (
            site.app.test_request_context(),
            pytest.raises(
                ConfigurationError, match=r"Marker\.__replicated__ = 'leader'"
            ),
        ):
            site.who()
