"""A small shop with a primary and two replicas, for one library at a time.

What is run on it is the code of ``docs/integrations.md``, as printed there.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event

from flask_replicated import FlaskReplicated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient
    from typing_extensions import Self

__all__ = ["Shop", "documented"]

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def documented(section: str, document: str = "integrations") -> list[str]:
    """Return the Python code that a section of a document prints.

    Args:
        section: Its heading.
        document: The document's name in ``docs``.

    Raises:
        LookupError: There is no such section, or no code in it.
    """
    text = (ROOT / "docs" / f"{document}.md").read_text()
    pattern = rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)"
    found = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    blocks = BLOCK.findall(found[1]) if found else []
    if not blocks:
        raise LookupError(f"docs/{document}.md shows no code under {section!r}.")
    return blocks


class Shop:
    """An application over one SQLite file, which each server reads as its own.

    Args:
        section: Whose code is run.
        primary: The primary's URL; a file's in a temporary directory by default.
        replica: The URL of both replicas; the primary's by default.
        config: Settings.

    Attributes:
        names: What the code of the document knows and makes.
        served: How many statements each server was sent.
    """

    def __init__(
        self, section: str, primary: str = "", replica: str = "", **config: Any
    ) -> None:
        self._folder = TemporaryDirectory(prefix="flask-replicated-")
        self._section = section
        self.app = Flask("shop", root_path=self._folder.name)
        url = primary or f"sqlite:///{self._folder.name}/shop.db"
        binds = dict.fromkeys(("slave_1", "slave_2"), replica or url)
        self.app.config.update(
            SECRET_KEY="not-a-secret",
            SQLALCHEMY_DATABASE_URI=url,
            SQLALCHEMY_BINDS=binds,
            TESTING=True,
        )
        self.app.config.update(config)
        self.db = db = SQLAlchemy()
        self.replicated = FlaskReplicated()
        self.served: Counter[str] = Counter()
        columns = {
            "id": db.Column(db.Integer, primary_key=True),
            "name": db.Column(db.String),
        }
        known = {"app": self.app, "db": db, "replicated": self.replicated}
        self.names: dict[str, Any] = {**known, "__name__": "documented"}
        self.guest: Any = None
        self._columns = columns

    def make_guest(self) -> Any:
        """Make the model ``Guest``, unless the document makes it."""
        columns = self._columns
        self.guest = type(
            "Guest", (self.db.Model,), {"__tablename__": "guest", **columns}
        )
        self.names["Guest"] = self.guest
        return self.guest

    def run(self, number: int = 0, section: str = "") -> dict[str, Any]:
        """Run one block of the section's code; return all names that are known then."""
        block = documented(section or self._section)[number]
        title = f"docs/integrations.md, {section or self._section!r}, block {number}"
        exec(compile(block, title, "exec"), self.names)
        return self.names

    def start(self) -> None:
        """Register what is not yet, make the tables and two guests."""
        if "sqlalchemy" not in self.app.extensions:
            self.db.init_app(self.app)
        if "replicated" not in self.app.extensions:
            self.replicated.init_app(self.app)
        state = self.replicated.state(self.app)
        if state is None:
            raise RuntimeError("The extension is not registered.")
        with self.app.app_context():
            self.db.create_all()
            if self.guest is not None:
                guests = [self.guest(name=name) for name in ("Ada", "Bob")]
                self.db.session.add_all(guests)
                self.db.session.commit()
            engines = {"primary": state.routes[None].real}
            engines |= {name: self.db.engines[name] for name in ("slave_1", "slave_2")}
        for name, engine in engines.items():
            self._count(name, engine)

    def _count(self, name: str, engine: Any) -> None:
        @event.listens_for(engine, "do_execute")
        def count(*_: Any) -> None:
            self.served[name] += 1

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Give the statements that each kind of server is sent inside the block."""
        before, found = self.served.copy(), Counter[str]()
        yield found
        for name, count in (self.served - before).items():
            found["primary" if name == "primary" else "replica"] += count

    def client(self) -> FlaskClient:
        """Return a visitor without cookies."""
        return self.app.test_client()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "sqlalchemy" in self.app.extensions:
            with self.app.app_context():
                self.db.session.remove()
                for engine in self.db.engines.values():
                    engine.dispose()
        self._folder.cleanup()
