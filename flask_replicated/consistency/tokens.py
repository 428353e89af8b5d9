"""Tokens: what a client must be shown, by bind, as a short text that it can carry.

A token is binary, in URL-safe base64, signed where the application has a
``SECRET_KEY``. The names of binds are in it as digests only. It is opaque to clients,
and no secret: a client that changes its own buys no more than reads from the primary.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from itsdangerous import BadSignature, Signer

from .positions import LogPosition, merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = [
    "CLOCK_SKEW",
    "NOTHING",
    "NO_MARK",
    "UNKNOWN_SERVER",
    "Mark",
    "Token",
    "bind_id",
    "decode",
    "encode",
    "merge_texts",
]

CLOCK_SKEW = 1.0
"""Seconds by which the clocks of two workers may differ; more is a forgery."""

UNKNOWN_SERVER = 1
"""In place of a server's digest: the client may have seen all that the primary had."""

_VERSION = 1
_MAX_TEXT = 4096  # characters
_MAX_DATA = 3000  # bytes; as text and signed, they are no more than that
_MAX_BINDS = _MAX_STREAMS = 64
_MAX_BITS = 64
_DIGEST_BITS = 32
_TIME_BITS = 45  # milliseconds, for a thousand years
_MAX_TEXTS = 11  # ten in a request, and what stand-ins have; each costs a signature
_MILLISECONDS = 1000
_POSITION, _UNTOLD, _REPLICA = 1, 2, 4  # what a mark has
_SEVEN_BITS, _MORE = 0x7F, 0x80
_SALT = "flask-replicated.token"


class Mark(NamedTuple):
    """What a client must be shown of one bind.

    Attributes:
        position: A log position that it has written, or read; None if it is not known.
        at: When that was noted, in seconds of Unix time; 0 if there is nothing.
        untold: When it last wrote something whose position is not known, in seconds of
            Unix time; 0 if it has not.
        replica: A digest of the server that it last read from, 32 bits; 0 for none.
    """

    position: LogPosition | None = None
    at: float = 0.0
    untold: float = 0.0
    replica: int = 0

    def covers(self, other: Mark) -> bool:
        """Whether it demands all that another does, and names the same server."""
        mine, theirs = self.position, other.position
        return (
            (theirs is None or (mine is not None and mine.covers(theirs)))
            and self.untold >= other.untold
            and self.replica == other.replica
        )

    def merged(self, other: Mark) -> Mark:
        """Return a mark that demands what both do."""
        if other in (NO_MARK, self):
            return self
        if self == NO_MARK:
            return other
        earlier, later = sorted((self, other), key=_when)
        position = later.position
        if position is None or earlier.position is None:
            position = position or earlier.position
        else:
            position = merged(earlier.position, position)
        return Mark(
            position,
            later.at,
            max(self.untold, other.untold),
            _both_servers(self.replica, other.replica),
        )

    def after_read(self, seen: Mark) -> Mark:
        """Return a mark for a client that has read what this one demands, and more.

        Args:
            seen: What it was shown at least, and by which server. It replaces the
                server from before, of which the read has shown all.
        """
        return self._replace(replica=0).merged(seen)._replace(replica=seen.replica)


NO_MARK = Mark()
"""It demands nothing."""


def _both_servers(one: int, other: int) -> int:
    """Return the digest of a server that shows what both have shown, if there is."""
    if one and other:
        return one if one == other else UNKNOWN_SERVER
    return one or other


def _when(mark: Mark) -> tuple[float, int]:
    # More than the time, so that of two that are merged either may come first.
    return mark.at, -1 if mark.position is None else mark.position.cluster


class Token(Mapping[int, Mark]):
    """What a client must be shown, by bind; false if that is nothing.

    Args:
        marks: The marks by :func:`bind_id`.

    Attributes:
        latest_untold: When its latest write was whose position is not known, in seconds
            of Unix time; 0 if there is none.
    """

    __slots__ = ("_marks", "latest_untold")

    def __init__(self, marks: Mapping[int, Mark] = MappingProxyType({})) -> None:
        self._marks = dict(marks)
        untold = [mark.untold for mark in self._marks.values()]
        self.latest_untold = max(untold, default=0.0)

    def __getitem__(self, bind: int) -> Mark:
        return self._marks[bind]

    def __iter__(self) -> Iterator[int]:
        return iter(self._marks)

    def __len__(self) -> int:
        return len(self._marks)

    def of(self, bind: int) -> Mark:
        """Return the mark of a bind; one that demands nothing if there is none."""
        return self._marks.get(bind, NO_MARK)

    def __repr__(self) -> str:
        return f"<Token of {len(self)} binds>"

    def without_servers(self) -> Token:
        """Return it without the servers that were read from."""
        marks = {bind: mark._replace(replica=0) for bind, mark in self.items()}
        return Token({bind: mark for bind, mark in marks.items() if mark != NO_MARK})

    def without_positions(self, binds: Iterable[int]) -> Token:
        """Return it without the positions of some binds."""
        kept = {
            bind: self[bind]._replace(position=None) for bind in binds if bind in self
        }
        return Token({**self, **kept})

    def covers(self, other: Token) -> bool:
        """Whether it demands all that another does, so that this one will do."""
        if other is self:
            return True
        return all(self.of(bind).covers(mark) for bind, mark in other._marks.items())

    def merged(self, other: Token) -> Token:
        """Return a token that demands what both do."""
        if not other._marks or other is self:
            return self
        if not self._marks:
            return other
        marks = dict(self._marks)
        for bind, mark in other.items():
            mine = marks.get(bind)
            marks[bind] = mark if mine is None else mine.merged(mark)
        return Token(marks)

    def alive(self, now: float, seconds: float, untold: float) -> Token:
        """Return it without what is too old, or from the future.

        Args:
            now: Seconds of Unix time.
            seconds: The longest life of a position.
            untold: The longest life of a time whose position is not known, in seconds.
        """
        marks = {}
        for bind, mark in self._marks.items():
            kept = mark
            if mark.untold and not -CLOCK_SKEW <= now - mark.untold < untold:
                kept = mark._replace(untold=0.0)
            if not -CLOCK_SKEW <= now - mark.at < seconds:
                kept = Mark(untold=kept.untold)
            if kept != NO_MARK:
                marks[bind] = kept
        if marks == self._marks:
            return self
        return Token(marks) if marks else NOTHING

    def life(self, seconds: float) -> tuple[float, float]:
        """Return from when until when :meth:`alive` leaves it as it is, in Unix time.

        There is no such time where it has a write whose position is not known.

        Args:
            seconds: The longest life of a position.
        """
        if self.latest_untold or not self._marks:
            return 0.0, 0.0
        noted = [mark.at for mark in self._marks.values()]
        return max(noted) - CLOCK_SKEW, min(noted) + seconds


NOTHING = Token()
"""It demands nothing of any bind."""


def bind_id(key: str | None) -> int:
    """Return the digest under which a token has a bind; None is the default bind."""
    return zlib.crc32((key or "").encode())


def encode(token: Token, keys: Sequence[str | bytes]) -> str:
    """Return a token as text; ``""`` if it demands nothing.

    It is never longer than what can be read. Where positions do not fit, their times
    stand for them, as for writes whose position is not known.

    Args:
        token: The token. Of more than 64 binds those count that were noted last.
        keys: The secret keys, the one to sign with last; without any it is not signed.
    """
    if not token:
        return ""
    marks = list(token.items())
    if len(marks) > _MAX_BINDS:
        marks = sorted(marks, key=lambda one: max(one[1].at, one[1].untold))
        marks = marks[-_MAX_BINDS:]
    data = _packed(marks)
    if len(data) > _MAX_DATA:
        data = _packed((bind, _without_position(mark)) for bind, mark in marks)
    text = urlsafe_b64encode(data).rstrip(b"=")
    return (_signer(keys).sign(text) if keys else text).decode()


def _packed(marks: Iterable[tuple[int, Mark]]) -> bytes:
    out = bytearray([_VERSION])
    for bind, mark in marks:
        many = mark.position is not None and len(mark.position.streams) > _MAX_STREAMS
        for number in _numbers_of(bind, _without_position(mark) if many else mark):
            _write_number(out, number)
    return bytes(out)


def _without_position(mark: Mark) -> Mark:
    if mark.position is None:
        return mark
    return mark._replace(position=None, untold=max(mark.untold, mark.at))


def _numbers_of(bind: int, mark: Mark) -> list[int]:
    """Return the numbers that a mark is written as."""
    position, untold = mark.position, round(mark.untold * _MILLISECONDS)
    has = _POSITION if position is not None else 0
    has |= _UNTOLD if untold else 0
    has |= _REPLICA if mark.replica else 0
    numbers = [bind, has, round(mark.at * _MILLISECONDS)]
    if position is not None:
        numbers += [position.cluster, position.timeline, len(position.streams)]
        numbers += [number for stream in position.streams.items() for number in stream]
    return numbers + [number for number in (untold, mark.replica) if number]


def _write_number(out: bytearray, number: int) -> None:
    """Write a number in groups of seven bits, the lowest first."""
    while number > _SEVEN_BITS:
        out.append(number & _SEVEN_BITS | _MORE)
        number >>= 7
    out.append(number)


def decode(text: str, keys: Sequence[str | bytes]) -> Token | None:
    """Return the token that a text is; None if it cannot be read. It never raises.

    Args:
        text: From anywhere.
        keys: The secret keys; with any, what none of them has signed cannot be read.
    """
    if not text:
        return Token()
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        return None
    try:
        raw = _signer(keys).unsign(text) if keys else text.encode()
        data = urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
        # Base64 ignores what is no base64; one token has one text.
        if urlsafe_b64encode(data).rstrip(b"=") != raw:
            return None
        return Token(dict(_read_marks(data))) or None
    except (BadSignature, binascii.Error, ValueError, IndexError):
        return None


def _read_marks(data: bytes) -> Iterator[tuple[int, Mark]]:
    if data[0] != _VERSION:
        raise ValueError("another version")
    numbers = _read_numbers(data[1:])
    known: set[int] = set()
    for bind in numbers:
        if bind in known or bind >> _DIGEST_BITS or len(known) == _MAX_BINDS:
            raise ValueError("no bind, or too many")
        known.add(bind)
        yield bind, _read_mark(numbers)


def _read_mark(numbers: Iterator[int]) -> Mark:
    has = _next(numbers)
    if has > _POSITION | _UNTOLD | _REPLICA:
        raise ValueError("an unknown part")
    at = _next(numbers, 0, _TIME_BITS) / _MILLISECONDS
    position = _read_position(numbers) if has & _POSITION else None
    untold = _next(numbers, 1, _TIME_BITS) if has & _UNTOLD else 0
    replica = _next(numbers, 1, _DIGEST_BITS) if has & _REPLICA else 0
    return Mark(position, at, untold / _MILLISECONDS, replica)


def _read_position(numbers: Iterator[int]) -> LogPosition:
    cluster, timeline = _next(numbers), _next(numbers)
    count, streams = _next(numbers), dict[int, int]()
    if count > _MAX_STREAMS:
        raise ValueError("too many streams")
    for _ in range(count):
        stream = _next(numbers)
        streams[stream] = _next(numbers)
    if len(streams) < count:
        raise ValueError("a stream that is there twice")
    return LogPosition(cluster, timeline, streams)


def _next(numbers: Iterator[int], least: int = 0, bits: int = _MAX_BITS) -> int:
    found = next(numbers, None)
    if found is None:
        raise ValueError("it ends too early")
    if found < least or found >> bits:
        raise ValueError("a number is out of its range")
    return found


def _read_numbers(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & _SEVEN_BITS) << shift
        if number >> _MAX_BITS:
            raise ValueError("a number is too large")
        if byte & _MORE:
            shift += 7
        elif shift and not byte:
            raise ValueError("a number is longer than it need be")
        else:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("it ends within a number")


def merge_texts(
    texts: Iterable[str],
    keys: Sequence[str | bytes],
    alive: Callable[[Token], Token] = lambda token: token,
    read: Callable[[str, Sequence[str | bytes]], Token | None] = decode,
) -> tuple[Token, bool]:
    """Return the maximum of several tokens, and whether each of them was read.

    Args:
        texts: The tokens; of many, the first eleven are read.
        keys: The secret keys.
        alive: Returns a token without what counts no more, or never did: a time in the
            future would hide the others.
        read: Returns the token that a text is; None if it cannot be read.
    """
    given = list(filter(None, texts))
    found, whole = NOTHING, len(given) <= _MAX_TEXTS
    for text in given[:_MAX_TEXTS]:
        token = read(text, keys)
        if token is None:
            whole = False
        else:
            token = alive(token)
            found = token if found is NOTHING else found.merged(token)
    return found, whole


def _signer(keys: Sequence[str | bytes]) -> Signer:
    return Signer(list(keys), salt=_SALT)  # type: ignore[arg-type]  # it takes a mixture
