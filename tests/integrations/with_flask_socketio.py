"""Each event of Flask-SocketIO is a request of its own, and sees earlier writes."""

from __future__ import annotations

from tests.integrations.shop import Shop


def main() -> None:
    """Read, write and read again over one socket."""
    with Shop("Flask-SocketIO") as shop:
        shop.make_guest()
        socketio = shop.run()["socketio"]
        shop.start()
        client, other = (socketio.test_client(shop.app) for _ in range(2))
        with shop.counted() as served:
            assert client.emit("names", callback=True) == ["Ada", "Bob"]
        assert set(served) == {"replica"}, served
        with shop.counted() as served:
            assert client.emit("add", "Cy", callback=True) == ["Ada", "Bob", "Cy"]
        assert set(served) == {"primary"}, served
        with shop.counted() as served:
            assert client.emit("names", callback=True) == ["Ada", "Bob", "Cy"]
        assert set(served) == {"primary"}, served
        with shop.counted() as served:
            other.emit("names", callback=True)
        assert set(served) == {"replica"}, served


if __name__ == "__main__":
    main()
