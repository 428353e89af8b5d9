"""The sockets of drivers whose connections have no ``fileno()``."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from flask_replicated.system.sockets import fileno_of, hang_up, socket_of, watch_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The drivers are not among those that are installed for tests, but for one of them.
SHAPES: dict[str, Callable[[socket.socket], dict[str, Any]]] = {
    "PyMySQL": lambda sock: {"_sock": sock, "_rfile": sock.makefile("rb")},
    "pg8000": lambda sock: {"_usock": sock, "_sock": sock.makefile("rwb")},
    "MySQL Connector/Python": lambda sock: {"_socket": SimpleNamespace(sock=sock)},
}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give both ends of a TCP connection: the server's and the driver's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        own = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with own, server:
        yield server, own


@pytest.mark.parametrize("driver", SHAPES)
class TestConnection:
    """A driver's connection, as far as its socket goes."""

    def test_shown(
        self, driver: str, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """Its socket is found, for its options and for the probe's look."""
        server, own = pair
        connection = SimpleNamespace(**SHAPES[driver](own))
        assert fileno_of(connection) == own.fileno()
        with socket_of(connection) as found:
            assert found is not None
            assert found.getsockname() == own.getsockname()
        readable = watch_socket(connection)
        assert not readable()
        server.sendall(b"the server says goodbye")
        assert readable()

    def test_released(
        self, driver: str, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """A thread that waits on it is woken up."""
        _, own = pair
        connection = SimpleNamespace(**SHAPES[driver](own))
        received: list[bytes] = []
        waits = threading.Thread(target=lambda: received.append(own.recv(1)))
        waits.start()
        assert hang_up(connection)
        waits.join(10)
        assert received == [b""]

    def test_closed(
        self, driver: str, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """One that is closed has no socket."""
        _, own = pair
        made = SHAPES[driver](own)
        for one in (*made.values(), own):
            getattr(one, "close", own.close)()
        connection = SimpleNamespace(**made)
        assert fileno_of(connection) is None
        assert not hang_up(connection)
