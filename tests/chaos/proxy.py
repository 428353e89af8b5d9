"""A TCP proxy in front of servers, which falls silent or slow on demand."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from typing_extensions import Self

__all__ = ["Proxy"]

_KEPT = 65536  # bytes of what a client has sent


class _Flow:
    """One client's connection.

    Attributes:
        passes: Whether anything is passed on.
        said: What the client has sent, the latest of it.
    """

    def __init__(self) -> None:
        self.passes = asyncio.Event()
        self.said = b""


class Proxy:
    """Forwards a port of its own to another one; one thread serves all connections.

    While it is silent it takes connections and passes nothing on, in no direction:
    what a firewall that drops packets looks like. Nothing is lost meanwhile; it is
    passed on later.

    Args:
        target: The port on 127.0.0.1 to forward to.
        others: Further ones; new connections go to each of all in turn.

    Attributes:
        port: Its own, on 127.0.0.1.
        target: The port that new connections are forwarded to, or the first of them.
        delay: Seconds for which each piece of an answer is held back.
        refusing: Whether new connections are reset at once.
        holding: Whether new connections are taken, and nothing is passed on over them.
    """

    def __init__(self, target: int, *others: int) -> None:
        self.port = 0
        self.delay = 0.0
        self.refusing = self.holding = False
        self.target = target
        self._others = others
        self._turns = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        # One for each connection that is open.
        self._flows: dict[asyncio.StreamWriter, _Flow] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        self._started = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def silence(self) -> None:
        """Pass nothing on."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def silence_open(self, said: bytes = b"") -> None:
        """Pass nothing on over the connections that are open; new ones are served.

        A firewall that has forgotten its flows looks like this.

        Args:
            said: Only over those whose clients have sent this.
        """
        silenced = threading.Event()
        self._loop.call_soon_threadsafe(self._silence_open, said, silenced)
        if not silenced.wait(10):
            raise RuntimeError("The proxy does not run.")

    def _silence_open(self, said: bytes, silenced: threading.Event) -> None:
        for flow in self._flows.values():
            if said in flow.said:
                flow.passes.clear()
        silenced.set()

    def speak(self) -> None:
        """Pass on what was held back, and all that follows."""
        self._loop.call_soon_threadsafe(self._speak)

    def _speak(self) -> None:
        self._passing.set()
        for flow in self._flows.values():
            flow.passes.set()

    def reset(self) -> None:
        """Cut every connection with a reset, as a firewall that has restarted does."""
        self._loop.call_soon_threadsafe(self._reset)

    def _reset(self) -> None:
        for writer in self._flows:
            _cut(writer)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._ended.wait()
        # What was accepted a moment ago becomes a flow, which a closed server prevents.
        for listening in server.sockets:
            self._loop.remove_reader(listening.fileno())
        await _settle()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # One that still has something to send would outlive the loop.
        for transport in self._transports:
            transport.abort()
        await _settle()

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._transports.add(writer.transport)
        if self.refusing:
            _cut(writer)
            return
        flow = self._flows[writer] = _Flow()
        if not self.holding:
            flow.passes.set()
        task = asyncio.ensure_future(self._forward(reader, writer, flow))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._flows.pop(writer))

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        flow: _Flow,
    ) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            await self._may_pass(flow)
            targets = (self.target, *self._others)
            port = targets[next(self._turns) % len(targets)]
            there, back = await asyncio.open_connection("127.0.0.1", port)
            self._transports.add(back.transport)
            with contextlib.closing(back):
                answers = self._pump(there, writer, flow, answers=True)
                await _run_until_first(self._pump(reader, back, flow), answers)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        flow: _Flow,
        *,
        answers: bool = False,
    ) -> None:
        while data := await source.read(65536):
            if not answers:
                flow.said = (flow.said + data)[-_KEPT:]
            if self.delay and answers:
                await asyncio.sleep(self.delay)
            await self._may_pass(flow)
            sink.write(data)
            await sink.drain()
        await self._may_pass(flow)  # a firewall hides an end, too

    async def _may_pass(self, flow: _Flow) -> None:
        await self._passing.wait()
        await flow.passes.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(10):
            raise RuntimeError("The proxy did not start.")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)


async def _settle() -> None:
    """Let the loop do what it has to do next, and next after that."""
    for _ in range(10):
        await asyncio.sleep(0)


def _cut(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    # Without lingering the end of a socket is a reset.
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def _run_until_first(*ways: Coroutine[Any, Any, None]) -> None:
    """Run both ways; either side ends the conversation for both, as a socket does."""
    pumps = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
