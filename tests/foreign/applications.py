"""The applications that are visited, and how to get them to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["APPLICATIONS", "Application", "Mend"]


@dataclass(frozen=True)
class Mend:
    """A place in the sources that does not work with today's libraries.

    Attributes:
        path: The file, from the root of the checkout.
        old: What is there, once.
        new: What is put there.
    """

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Application:
    """An application in a public repository.

    Attributes:
        name: Its name.
        kind: What it is, in a word.
        repository: Where ``git clone`` finds it.
        commit: The commit that is visited.
        pythons: The versions of Python that it runs on, the best one first.
        requirements: What pip installs; ``{checkout}`` is the folder of its sources.
        mends: What is mended in the sources.
        lazy_annotations: A folder of modules whose annotations only Python 3.14 takes,
            since it does not evaluate them; None if there is none.
        blocks: Where its owner puts ``@using_master(pin=False)`` when a warning about
            an endpoint offers that block, by the endpoint: ``module:Class.method``, or
            the name of an endpoint for its view.
        marks: The model that gets ``__replicated__ = "master"`` when a warning offers
            that for its table, by the table: ``module:Class``.
    """

    name: str
    kind: str
    repository: str
    commit: str
    pythons: tuple[str, ...]
    requirements: tuple[str, ...]
    blocks: Mapping[str, str] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)
    mends: tuple[Mend, ...] = ()
    lazy_annotations: str | None = None


_FLASKBB = Application(
    "flaskbb",
    "forum",
    "https://github.com/flaskbb/flaskbb",
    "4b78af85e96b375fdbc4d53723cedea459c99ac4",
    ("3.13", "3.12"),
    ("{checkout}", "psycopg2-binary"),
    # It looks whether the visitor has read the topic, or all of the forum, before.
    marks={
        "topicsread": "flaskbb.forum.models:TopicsRead",
        "forumsread": "flaskbb.forum.models:ForumsRead",
    },
    mends=(
        # Without a join each post comes as often as there are members.
        Mend(
            "flaskbb/forum/views.py",
            "db.select(Post, User)",
            "db.select(Post, User).outerjoin(User, Post.user_id == User.id)",
        ),
    ),
    lazy_annotations="flaskbb",
)

_MICROBLOG = Application(
    "microblog",
    "blog",
    "https://github.com/miguelgrinberg/microblog",
    "a975ef64864354867c88e0ed3a17ba7d17dca752",
    ("3.12", "3.11", "3.10"),
    ("--requirement={checkout}/requirements.txt",),
    blocks={"main.messages": "main.messages"},
)

_IHATEMONEY = Application(
    "ihatemoney",
    "budget",
    "https://github.com/spiral-project/ihatemoney",
    "52e5720ec78d32eab963cd7e73d4826ae3a16950",
    ("3.13", "3.12", "3.11"),
    ("{checkout}", "psycopg2-binary"),
)

APPLICATIONS: Final = {one.name: one for one in (_FLASKBB, _MICROBLOG, _IHATEMONEY)}
