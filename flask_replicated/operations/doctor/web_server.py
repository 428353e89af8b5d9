"""How the application's web server runs it, where that can be told from here.

Inside uWSGI it is what uWSGI says. Elsewhere it is what uWSGI would read by itself: the
environment, and an ini file that is named there or called ``uwsgi.ini``.
"""

from __future__ import annotations

import os
import sys
from configparser import ConfigParser, Error
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["web_server_findings", "worker_count"]

_OFF = frozenset({"", "0", "false", "no", "off"})
_PREFIX = "UWSGI_"


def worker_count() -> int | None:
    """Return how many worker processes there are; None if that is not told.

    gunicorn and others read WEB_CONCURRENCY.
    """
    options = _uwsgi_options()
    told = [os.environ.get("WEB_CONCURRENCY"), *map(options.get, _WORKERS)]
    numbers = (int(one) for one in told if one is not None and one.isdecimal())
    return next((number for number in numbers if number > 0), None)


def web_server_findings() -> Iterator[Finding]:
    """Find options of uWSGI with which threads or forks go wrong."""
    options = _uwsgi_options()
    if not options:
        return
    if not any(_is_on(options, name) for name in _THREADS):
        yield Finding(
            "warning",
            "web_server",
            None,
            "uWSGI runs without enable-threads, so that older versions (2.0.21 was "
            "tried) look at replicas and at the control place only while they answer a "
            "request",
            "Set enable-threads = true in uWSGI's configuration",
        )
    if not any(_is_on(options, name) for name in _TOLD_OF_FORKS):
        yield Finding(
            "warning",
            "web_server",
            None,
            "uWSGI forks its workers after the application was loaded, and does not "
            "tell Python",
            "Set py-call-osafterfork = true in uWSGI's configuration, or lazy-apps = "
            "true",
        )


_WORKERS = ("workers", "processes")
_THREADS = ("enable-threads", "threads")
_TOLD_OF_FORKS = ("py-call-osafterfork", "lazy-apps", "lazy")


def _is_on(options: Mapping[str, str], name: str) -> bool:
    return options.get(name, "").lower() not in _OFF


def _uwsgi_options() -> dict[str, str]:
    """Return uWSGI's options by their names; empty without uWSGI."""
    inside: Any = sys.modules.get("uwsgi")
    if inside is not None:
        return {_text(name): _text(value) for name, value in inside.opt.items()}
    found = _options_of_file(os.environ.get(f"{_PREFIX}INI", "uwsgi.ini"))
    for name, value in os.environ.items():
        if name.startswith(_PREFIX):
            found[name.removeprefix(_PREFIX).lower().replace("_", "-")] = value
    return found


def _options_of_file(path: str) -> dict[str, str]:
    parser = ConfigParser(
        strict=False, allow_no_value=True, interpolation=None, delimiters=("=",)
    )
    try:
        with Path(path).open(encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, UnicodeError, Error):
        return {}
    section = parser["uwsgi"] if parser.has_section("uwsgi") else {}
    return {name.replace("_", "-"): value or "true" for name, value in section.items()}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
