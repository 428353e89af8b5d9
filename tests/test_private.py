"""The private names of other libraries are where the package expects them."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, orm

from flask_replicated import _private

if TYPE_CHECKING:
    from collections.abc import Iterator

# Attributes of a driver's connection, by the module whose source must set them.
DRIVERS = {
    "pymysql.connections": ["_next_seq_id", "_read_timeout", "_result", "_sock"],
    "pg8000.core": ["_backend_key_data", "_usock"],
    "mysql.connector.connection": ["_socket"],
}

Owners = dict[str, list[object]]


@pytest.fixture
def owners() -> Iterator[Owners]:
    """Give for each name the objects that must have it."""
    select = sa.select(sa.table("entry", sa.column("text")))
    engine = sa.create_engine("sqlite://", poolclass=sa.QueuePool)
    with engine.connect() as connection, orm.Session(engine) as session:
        session.connection()
        yield {
            "_raw_columns": [select],
            "_setup_joins": [select],
            "_from_obj": [select],
            "_independent_ctes": [select],
            "_for_update_arg": [select],
            "_hints": [select],
            "_statement_hints": [select],
            "_with_options": [select],
            "_creator": [engine.pool],
            "_invoke_creator": [engine.pool],
            "_max_overflow": [engine.pool],
            "_timeout": [engine.pool],
            "_builtin_onconnect": [engine.dialect],
            "_dbapi_connection": [connection],
            "_transaction": [session, connection],
            "_echo": [connection],
            "_connection_begin_impl": [sa.RootTransaction],
            "_has_events": [connection, engine],
            "_connection_cls": [engine],
            "_proxied": [engine.execution_options(logging_token="x")],
            "_EventKey": [event],
            "_join": [engine.dispatch],
            "_listen": [engine.dispatch, engine.pool.dispatch],
            "_sessions": [import_module("sqlalchemy.orm.session")],
            "_flushing": [session],
            "_connections": [session.get_transaction()],
            "_make_engine": [SQLAlchemy],
            "_cv_app": [import_module("flask.globals")],
            "_cv_request": [import_module("flask.globals")],
        }
    engine.dispose()


READERS = {"attrgetter", "getattr", "methodcaller", "setattr"}
OWN = {"self", "cls", "super()"}


def names_in(path: Path) -> set[str]:
    """Return the private names that a module reads of something other than itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found |= set() if ast.unparse(node.value) in OWN else {node.attr}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in READERS:
            strings = [one for one in node.args if isinstance(one, ast.Constant)]
            own = ast.unparse(node.args[0]) in OWN
            found |= set() if own else {str(one.value) for one in strings}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return {name for name in found if re.fullmatch(r"_[A-Za-z]\w+", name)}


def test_names_exist(owners: Owners) -> None:
    """SQLAlchemy, Flask and Flask-SQLAlchemy have what is read of them."""
    missing = {
        name: owner
        for name, found in owners.items()
        for owner in found
        if not hasattr(owner, name)
    }
    assert not missing


def test_arguments_exist() -> None:
    """``Session.execute()`` takes a handler of its own."""
    assert _private.ADD_EVENT in inspect.signature(orm.Session.execute).parameters


@pytest.mark.parametrize(("module", "names"), DRIVERS.items())
def test_names_of_drivers(module: str, names: list[str]) -> None:
    """A driver's connections have what is read of them."""
    if find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"{module} is not installed")
    source = inspect.getsource(import_module(module))
    assert not [name for name in names if not re.search(rf"self\.{name}\b", source)]


def test_every_name_is_looked_for(owners: Owners) -> None:
    """A name that the package reads is looked for by a test here."""
    known = {*owners, *(name for names in DRIVERS.values() for name in names)}
    assert names_in(Path(_private.__file__)) - known == set()
    assert set().union(*_private.INHERITED.values()) <= owners.keys()


def test_one_door(owners: Owners) -> None:
    """No other module reads a private name of a library."""
    package = Path(_private.__file__).parent
    private = names_in(Path(_private.__file__)) - {"_listen"}
    found = {
        str(path.relative_to(package)): names
        for path in package.rglob("*.py")
        if path != Path(_private.__file__) and (names := names_in(path) & private)
    }
    # The one that is read at each statement, where even a call costs too much.
    assert found == {"engine/session.py": {"_connections"}}
