"""What ends the servers of a cluster, whatever ended its owner.

A small process of its own session waits on a pipe from the owner. It is started from
this file, and so imports nothing else of this project.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable

HINT: Final = "It comes with the demo extra: pip install '.[demo]' in a clone"

try:
    import psutil
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(f"psutil is not installed. {HINT}") from _error

__all__ = ["HINT", "is_gone", "send_signal", "start_watchdog", "sweep", "wait_until"]

_PROGRAMS: Final = frozenset({"postgres", "initdb", "pg_basebackup", "mariadbd"})


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Return as soon as *condition* holds.

    Args:
        condition: Asked every 10 milliseconds, and once more at the deadline.
        what: What is waited for, for the message.
        timeout: In seconds.

    Raises:
        TimeoutError: It does not hold after *timeout*.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Waited {timeout:g} s in vain: {what}.")
        time.sleep(0.01)


def start_watchdog(
    root: Path, account: pwd.struct_passwd | None
) -> subprocess.Popen[bytes]:
    """Start the process that cleans up *root*, as *account*; its input is the pipe."""
    ids = [] if account is None else [str(account.pw_uid), str(account.pw_gid)]
    script = str(Path(__file__).resolve())
    return subprocess.Popen(
        [sys.executable, script, str(root), str(os.getpid()), *ids],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def _watch(root: str, owner: str, *ids: str) -> None:
    """Wait for the word or the end of *owner*, then clean up *root*."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if ids:
        uid, gid = map(int, ids)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # A forked child of the owner may hold the pipe open longer than the owner lives.
    while os.getppid() == int(owner) and not select.select([0], [], [], 0.5)[0]:
        pass
    sweep(Path(root))


def sweep(root: Path) -> None:
    """End every process that works in *root*, then remove it."""
    for process in _residents(root):
        send_signal(process, signal.SIGCONT)
        # A server drops what it is doing, and releases its shared memory.
        send_signal(process, signal.SIGQUIT)
    try:
        wait_until(lambda: not _residents(root), "a quick shutdown", timeout=3.0)
    except TimeoutError:
        wait_until(lambda: not _kill_residents(root), f"the end of all in {root}")
    for lock in (*root.glob("*/postmaster.pid"), *root.glob("*.pid")):
        _release_memory(lock)
    shutil.rmtree(root, ignore_errors=True)


def _kill_residents(root: Path) -> bool:
    residents = _residents(root)
    for process in residents:
        send_signal(process, signal.SIGKILL)
    return bool(residents)


def _residents(root: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if _lives_in(p, root)]


def _lives_in(process: psutil.Process, root: Path) -> bool:
    try:
        known = process.name() in _PROGRAMS and not is_gone(process)
        return known and root in (where := Path(process.cwd()), *where.parents)
    except psutil.Error:
        return False


def send_signal(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal, unless the process is gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def is_gone(process: psutil.Process) -> bool:
    """Tell whether a process has ended, buried or not."""
    try:
        # Not every container has a first process that buries orphans.
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _release_memory(lock: Path) -> None:
    """Remove the System V segment that a killed server's lock file names."""
    lines = lock.read_text().splitlines()
    if len(lines) > 6 and len(words := lines[6].split()) == 2:
        remove = 0  # IPC_RMID
        ctypes.CDLL(None).shmctl(int(words[1]), remove, None)


if __name__ == "__main__":
    _watch(*sys.argv[1:])
