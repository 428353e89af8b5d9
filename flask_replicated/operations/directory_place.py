"""A directory on one host as the control place of its workers.

Files are replaced whole, so that no reader sees a part of one. Only what belongs to the
directory's owner, or to root, is believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .place import MOST_REPORTS, REPORTS_LAST, orders_from, orders_to, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .place import Order, OrderKey, Orders

__all__ = ["DirectoryPlace"]

_LARGEST = 1_000_000
"""Bytes of a file that is read."""
_ABANDONED = 600.0
"""Seconds after which what a process has left behind is removed."""
_WORKER, _NEW, _REPORT = "worker", "new", "report"
_END, _BETWEEN = ".json", "@"
_SECONDS = "seconds"
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, OverflowError)
_HAS_OWNERS = hasattr(os, "geteuid")
"""Whether files have owners here; not on Windows."""


def _name(*parts: str) -> str:
    return _BETWEEN.join(quote(part, safe="") for part in parts) + _END


class DirectoryPlace:
    """A directory on this host.

    Args:
        path: Its absolute path; it is made when it is needed.
        app: The application's name, by which several can share a directory.
    """

    def __init__(self, path: str, app: str) -> None:
        self._path = Path(path)
        self._app = app
        self._orders = _name(app, "orders")
        self._begins, self._new, self._report = (
            _name(app, kind).removesuffix(_END) + _BETWEEN
            for kind in (_WORKER, _NEW, _REPORT)
        )
        self._cleaned = 0.0

    def read_orders(self) -> Orders | None:
        """Return all orders; None if there are none."""
        try:
            found = read_json(self._read(self._orders))
        except FileNotFoundError:
            return None
        if not (isinstance(found, Mapping) and _all_text(found)):
            raise ValueError("the file of orders is damaged")
        return orders_from(found)

    def put_order(self, key: OrderKey, order: Order) -> None:
        """Add an order; two commands at a time lose none."""
        self._make()
        with self._locked():
            try:
                orders = self.read_orders() or {}
            except ValueError:
                orders = {}
            self._write(self._orders, json.dumps(orders_to({**orders, key: order})))

    def publish(self, name: str, text: str, seconds: float) -> None:
        """Keep a worker's account, and remove what others have left long ago."""
        self._make()
        self._write(_name(self._app, _WORKER, name), _with_seconds(text, seconds))
        if time.monotonic() - self._cleaned > _ABANDONED / 10:
            self._cleaned = time.monotonic()
            self._clean()

    def withdraw(self, name: str) -> None:
        """Remove a worker's account."""
        with contextlib.suppress(FileNotFoundError):
            (self._path / _name(self._app, _WORKER, name)).unlink()

    def accounts(self) -> list[str]:
        """Return the accounts that are young enough."""
        found = []
        for path in self._beginning_with(self._begins):
            with contextlib.suppress(*_UNREADABLE):
                text = self._read(path.name)
                seconds = float(read_json(text)[_SECONDS])
                # A file from the future was written before the clock was set back.
                age = time.time() - path.lstat().st_mtime
                if -seconds < age < seconds:
                    found.append(text)
        return found

    def keep_report(self, name: str, text: str) -> None:
        """Keep what a worker has observed; remove those that are too old, or many."""
        self._make()
        self._write(_name(self._app, _REPORT, name), text)
        for path in self._reports()[MOST_REPORTS:]:
            with contextlib.suppress(OSError):
                path.unlink()

    def reports(self) -> list[str]:
        """Return what workers have observed, the latest first."""
        found = []
        for path in self._reports()[:MOST_REPORTS]:
            with contextlib.suppress(*_UNREADABLE):
                found.append(self._read(path.name))
        return found

    def clear_reports(self) -> None:
        """Remove what workers have observed."""
        for path in self._beginning_with(self._report):
            path.unlink(missing_ok=True)

    def _reports(self) -> list[Path]:
        """Return the files of the reports that are young enough, the latest first."""
        aged: list[tuple[float, Path]] = []
        for path in self._beginning_with(self._report):
            with contextlib.suppress(OSError):
                aged.append((time.time() - path.lstat().st_mtime, path))
        return [path for age, path in sorted(aged) if age < REPORTS_LAST]

    def _beginning_with(self, begins: str) -> list[Path]:
        try:
            found = list(self._path.iterdir())
        except FileNotFoundError:
            return []
        return [path for path in found if path.name.startswith(begins)]

    def _make(self) -> None:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _read(self, name: str) -> str:
        """Return a file's text.

        Raises:
            PermissionError: The directory belongs to another user.
            ValueError: The file does, or it is too large, or no text.
        """
        self._refuse_foreign()
        path = self._path / name
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or not self._believes(about.st_uid):
            raise ValueError(f"{path} is not a file of this user's")
        # Nobody else can put another one there: the directory is this user's.
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"{path} is too large")
        return content.decode()

    def _write(self, name: str, text: str) -> None:
        """Replace a file as a whole, on the disk before it is seen."""
        self._refuse_foreign()
        new = self._path / _name(self._app, _NEW, secrets.token_hex(8))
        number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(number, "w") as file:
                file.write(text)
                file.flush()
                if name == self._orders:
                    os.fsync(number)
                self._give_to_owner(number)
            new.replace(self._path / name)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    def _refuse_foreign(self) -> None:
        """Raise PermissionError unless only this user may write to the directory."""
        about = self._path.stat()
        if not _HAS_OWNERS:
            return
        mine = os.geteuid() in {about.st_uid, 0}
        if not mine or about.st_mode & stat.S_IWOTH:
            raise PermissionError(
                f"{self._path} must belong to the user that the workers run as, and "
                "nobody else may write to it"
            )

    def _believes(self, owner: int) -> bool:
        return not _HAS_OWNERS or owner in {
            0,
            os.geteuid(),
            self._path.stat().st_uid,
        }

    def _give_to_owner(self, number: int) -> None:
        """Let workers read what root has written."""
        if _HAS_OWNERS and os.geteuid() == 0:
            about = self._path.stat()
            os.fchown(number, about.st_uid, about.st_gid)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other commands from changing the orders."""
        if not _HAS_OWNERS:  # on Windows, which has no such locks either
            yield
            return
        fcntl = import_module("fcntl")
        number = os.open(self._path, os.O_RDONLY)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)

    def _clean(self) -> None:
        """Remove accounts of workers that were killed, and files half written."""
        for begins, seconds in (
            (self._begins, _ABANDONED),
            (self._new, _ABANDONED),
            (self._report, REPORTS_LAST),
        ):
            for path in self._beginning_with(begins):
                _remove_if_older(path, seconds)


def _remove_if_older(path: Path, seconds: float) -> None:
    with contextlib.suppress(OSError):  # another worker has removed it
        if time.time() - path.lstat().st_mtime > seconds:
            path.unlink()


def _all_text(found: Mapping[Any, Any]) -> bool:
    return all(isinstance(one, str) for one in found.values())


def _with_seconds(text: str, seconds: float) -> str:
    return json.dumps({**json.loads(text), _SECONDS: seconds})
