"""Visitors of the applications: they sign up, log in, read, post and read again."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from http.cookiejar import CookieJar
from itertools import cycle
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["VISITS", "Seen", "Visitor"]

_TOKEN: Final = re.compile(r'name="csrf[-_]token"[^>]*? (?:value|content)="([^"]+)"')


@dataclass
class Seen:
    """What a visitor has met.

    Attributes:
        pages: How many pages were asked for.
        errors: What was asked for and failed.
        own: How many times a page had to show an own write.
        missed: Those that did not, as path and text.
    """

    pages: int = 0
    errors: list[str] = field(default_factory=list)
    own: int = 0
    missed: list[str] = field(default_factory=list)


class Visitor:
    """A browser: cookies, forms, redirects, one page after another.

    Args:
        name: Its user name, in letters and digits.
        ports: Those of the workers; it goes to each in turn, as behind a proxy.
        pause: How long it looks at a page, in seconds.

    Attributes:
        signed_in: Whether it says that it has signed in.
        page: The last page.
        path: The last page's path, after redirects.
    """

    def __init__(self, name: str, ports: list[int], pause: float = 0.0) -> None:
        self.name = name
        self.signed_in = False
        self.page = self.path = ""
        self.seen = Seen()
        self._pause = pause
        self._ports = cycle(ports)
        cookies = urllib.request.HTTPCookieProcessor(CookieJar())
        self._opener = urllib.request.build_opener(cookies)

    def get(self, path: str, shows: str = "") -> str:
        """Read a page, which must show an own write if one is given."""
        return self._open(path, None, shows)

    def post(self, path: str, shows: str = "", **fields: object) -> str:
        """Send a form with the last page's token, and follow to the next page."""
        token = _TOKEN.search(self.page)
        given = {"csrf_token": token[1]} if token else {}
        data = urllib.parse.urlencode({**given, **fields}, doseq=True).encode()
        return self._open(path, data, shows)

    def _open(self, path: str, data: bytes | None, shows: str) -> str:
        time.sleep(self._pause)
        url = f"http://127.0.0.1:{next(self._ports)}{path}"
        who = "member" if self.signed_in else "guest"
        request = urllib.request.Request(url, data, {"X-Visitor": who})
        self.seen.pages += 1
        try:
            with self._opener.open(request, timeout=30) as answer:
                self.page = answer.read().decode()
                parts = urllib.parse.urlsplit(answer.url)
                self.path = f"{parts.path}?{parts.query}"
        except urllib.error.URLError as error:
            self.page = ""
            self.seen.errors.append(f"{path}: {error}")
        if shows:
            self.seen.own += 1
            if shows not in self.page:
                self.seen.missed.append(f"{path}: {shows}")
        return self.page


def _flaskbb(visitor: Visitor, rounds: int) -> None:
    name = visitor.name
    visitor.get("/auth/register")
    visitor.post(
        "/auth/register",
        username=name,
        email=f"{name}@example.org",
        password="secret",
        confirm_password="secret",
        language="en",
        accept_tos="y",
        submit="Register",
    )
    visitor.get("/auth/logout")  # it has signed its new member in
    visitor.get("/auth/login")
    visitor.post(
        "/auth/login", shows=name, login=name, password="secret", submit="Login"
    )
    visitor.signed_in = True
    for turn in range(rounds):
        visitor.get("/")
        visitor.get("/forum/1")
        for step in range(4):
            topic = 1 + (turn + step + len(name)) % 10
            visitor.get(f"/topic/{topic}")
        visitor.get(f"/user/{name}")
        text = f"reply{turn}of{name}"
        visitor.get(f"/topic/{topic}")
        visitor.post(f"/topic/{topic}", text, content=text, submit="Reply")
        visitor.get(visitor.path, text)
        visitor.get(f"/user/{name}/posts", text)
        visitor.get("/forum/1", name)
        visitor.get("/memberlist")
    text = f"topicof{name}"
    visitor.get("/1/topic/new")
    visitor.post("/1/topic/new", text, title=text, content=text, submit="Post Topic")
    visitor.get("/forum/1", text)
    visitor.get(f"/user/{name}/topics", text)


def _microblog(visitor: Visitor, rounds: int) -> None:
    name = visitor.name
    visitor.get("/auth/register")
    visitor.post(
        "/auth/register",
        username=name,
        email=f"{name}@example.org",
        password="secret",
        password2="secret",
        submit="Register",
    )
    visitor.get("/auth/login")
    visitor.post("/auth/login", username=name, password="secret", submit="Sign In")
    visitor.signed_in = True
    visitor.get(f"/user/{name}", shows=name)
    for turn in range(rounds):
        visitor.get("/index")
        visitor.get("/notifications?since=0")
        visitor.get("/explore")
        visitor.get("/notifications?since=0")
        visitor.get(f"/user/{name}")
        text = f"post{turn}of{name}"
        visitor.get("/index")
        visitor.post("/index", text, post=text, submit="Submit")
        visitor.get("/explore", text)
        visitor.get(f"/user/{name}", text)
        visitor.get(f"/user/{name}/popup")
        visitor.get("/messages")
        visitor.get("/notifications?since=0")
    text = f"about{name}"
    visitor.get("/edit_profile")
    visitor.post("/edit_profile", text, username=name, about_me=text, submit="Submit")
    visitor.get(f"/user/{name}", text)


def _ihatemoney(visitor: Visitor, rounds: int) -> None:
    name = visitor.name
    visitor.get("/")
    visitor.post(
        "/create",
        name=name,
        id=name,
        password="secret",
        contact_email=f"{name}@example.org",
        default_currency="XXX",
        submit="Create the project",
    )
    visitor.signed_in = True
    for person in ("ann", "bob"):
        visitor.get(f"/{name}/")
        visitor.post(f"/{name}/members/add", person, name=person, weight=1)
    people = re.findall(
        r'name="payed_for"[^>]*?value="(\d+)"', visitor.get(f"/{name}/")
    )
    for turn in range(rounds):
        visitor.get(f"/{name}/")
        visitor.get(f"/{name}/statistics")
        visitor.get(f"/{name}/settle_bills")
        visitor.get(f"/{name}/history")
        text = f"bill{turn}of{name}"
        visitor.get(f"/{name}/add")
        visitor.post(
            f"/{name}/add",
            text,
            date="2026-01-01",
            what=text,
            payer=people[0] if people else "",
            amount=10 + turn,
            original_currency="XXX",
            payed_for=people,
            bill_type="Expense",
            submit="Submit",
        )
        visitor.get(f"/{name}/", text)
        visitor.get(f"/{name}/history", text)
        visitor.get(f"/{name}/statistics", "ann")


VISITS: Final[Mapping[str, Callable[[Visitor, int], None]]] = {
    "flaskbb": _flaskbb,
    "microblog": _microblog,
    "ihatemoney": _ihatemoney,
}
"""A visit to each application, in as many rounds as are asked for."""
