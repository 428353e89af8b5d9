"""Which tables and columns a data-modifying statement certainly writes.

Used for writes that ``REPLICATED_UNPINNED`` exempts: a statement that is not understood
in full counts as any other write, so the parser gives up on everything that is not
plain. It reads the text that is sent, whether that comes from a flush, a construct or a
string.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .tokens import (
    Token,
    find_closing,
    is_mark,
    is_word,
    outside_parentheses,
    split,
    split_statements,
    tokenize,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Identifier", "TableWrite", "find_writes"]


class Identifier(NamedTuple):
    """A name in SQL.

    Attributes:
        text: The name, without quotes.
        quoted: Whether it was quoted.
    """

    text: str
    quoted: bool


class TableWrite(NamedTuple):
    """What a statement does to one table.

    Attributes:
        schema: The table's schema, if the statement names one.
        table: The table's name.
        columns: The columns that an update sets, or that an upsert inserts and sets;
            None if rows are inserted or deleted otherwise.
    """

    schema: Identifier | None
    table: Identifier
    columns: tuple[Identifier, ...] | None


class _AmbiguousError(Exception):
    """The statement cannot be parsed for certain."""


def find_writes(
    sql: str, dialect: str, computes: Callable[[str], bool]
) -> tuple[TableWrite, ...] | None:
    """Return what a statement writes; None where that is not certain.

    Args:
        sql: One statement.
        dialect: SQLAlchemy's name for the server's dialect.
        computes: Whether a word before a parenthesis is known to call nothing that
            writes.
    """
    tokens = tokenize(sql, dialect)
    if tokens is None:
        return None
    found = list(split_statements(tokens))
    if len(found) != 1:
        return None
    try:
        return tuple(_Parser(dialect, computes).statement(found[0]))
    except (_AmbiguousError, IndexError):  # the latter if a statement is cut off
        return None


_VERBS, _MODIFIERS, _CONFLICTS, _CLAUSES, _JOINS, _BEFORE_TABLE, _QUERIES, _NO_ALIAS = (
    frozenset(words.split())
    for words in (
        # Not allowed in the rest of a statement, which would write or lock as well.
        "call delete insert into lock merge replace share truncate update",
        "delayed high_priority ignore low_priority only quick",
        "abort fail ignore replace rollback",
        "from limit order returning where",
        "join straight_join",
        "from join lateral",
        "select table values with",
        # May follow a table's name without being its alias.
        "cross force ignore inner join left natural on partition right use using",
    )
)


class _Parser:
    """Parses statements of one dialect.

    Args:
        dialect: SQLAlchemy's name for the dialect.
        computes: See :func:`find_writes`.
    """

    def __init__(self, dialect: str, computes: Callable[[str], bool]) -> None:
        self._computes = computes
        # There a statement may write several tables.
        self._joins = dialect in {"mysql", "mariadb"}

    def statement(self, tokens: Sequence[Token]) -> list[TableWrite]:
        """Return what one statement writes."""
        writes: list[TableWrite] = []
        if is_word(tokens[0], "with"):
            tokens = self._with(tokens[1:], writes)
        head, rest = tokens[0], _without_modifiers(tokens[1:])
        if is_word(head, "select", "values", "table"):
            self._read(tokens)
        elif is_word(head, "insert", "replace"):
            # A replaced row is deleted, so its columns do not matter.
            replaces = is_word(head, "replace") or is_word(tokens[2], "replace")
            writes.append(self._insert(rest, upserts=not replaces))
        elif is_word(head, "update"):
            writes += self._update(rest)
        elif is_word(head, "delete"):
            writes += self._delete(rest)
        else:
            raise _AmbiguousError
        return writes

    def _with(
        self, tokens: Sequence[Token], writes: list[TableWrite]
    ) -> Sequence[Token]:
        """Append what CTEs write; return the statement that follows them."""
        if is_word(tokens[0], "recursive"):
            tokens = tokens[1:]
        while True:
            _, tokens = _name(tokens)
            if is_mark(tokens[0], "("):
                tokens = tokens[_end(tokens) + 1 :]
            if not is_word(tokens[0], "as"):
                raise _AmbiguousError
            tokens = tokens[1:]
            while is_word(tokens[0], "not", "materialized"):
                tokens = tokens[1:]
            end = _end(tokens)
            writes += self.statement(tokens[1:end])
            if not is_mark(tokens[end + 1], ","):
                return tokens[end + 1 :]
            tokens = tokens[end + 2 :]

    def _insert(self, tokens: Sequence[Token], *, upserts: bool) -> TableWrite:
        if is_word(tokens[0], "into"):
            tokens = tokens[1:]
        elif not self._joins:
            raise _AmbiguousError
        schema, table, rest = _table(tokens)
        read = [
            token
            for before, token in zip((None, *rest), rest, strict=False)
            if not (is_word(token, "update") and is_word(before, "do", "key"))
        ]
        self._read(read)
        return TableWrite(schema, table, _upserted(rest) if upserts else None)

    def _update(self, tokens: Sequence[Token]) -> list[TableWrite]:
        to = _find(tokens, "set")
        if to is None:
            raise _AmbiguousError
        named, rest = tokens[:to], tokens[to + 1 :]
        until = _find(rest, *_CLAUSES)
        assigned = split(rest[:until])
        self._read(named)
        self._read(rest[len(rest) if until is None else until :])
        if not self._joins:
            schema, table, more = _table(named)
            more = _without_index(more)
            _alias(more[1:] if more and is_mark(more[0], "*") else more)
            columns = [one for part in assigned for one in self._assigned(part)]
            return [TableWrite(schema, table, tuple(columns))]
        return self._update_joined(_references(named), assigned)

    def _update_joined(
        self, known: _Known, assigned: Sequence[Sequence[Token]]
    ) -> list[TableWrite]:
        """Return what an update of several tables sets, by the columns' qualifiers."""
        columns: dict[_Table, list[Identifier]] = {}
        for part in assigned:
            *qualifiers, column = self._left_side(part)
            if not qualifiers and len(known) != 1:
                raise _AmbiguousError
            alias = qualifiers[-1].text.lower() if qualifiers else next(iter(known))
            columns.setdefault(_known(known, alias), []).append(column)
        return [TableWrite(*table, tuple(names)) for table, names in columns.items()]

    def _assigned(self, part: Sequence[Token]) -> list[Identifier]:
        """Return the columns of an assignment to the only table."""
        if is_mark(part[0], "("):
            end = _end(part)
            self._read(part[end + 1 :])
            return [_only_name(one) for one in split(part[1:end])]
        # An element or a field of the column may follow its name.
        return self._left_side(part)[:1]

    def _left_side(self, part: Sequence[Token]) -> list[Identifier]:
        """Return the dotted name before the sign of an assignment."""
        sign = _sign(part, "[")
        self._read(part[sign:])
        return [_only_name(one) for one in split(part[:sign], ".")]

    def _delete(self, tokens: Sequence[Token]) -> list[TableWrite]:
        start = _find(tokens, "from")
        if start is None:
            raise _AmbiguousError
        using = _find(tokens, "using") if self._joins else None
        if not start and using is None:
            schema, table, rest = _table(_without_modifiers(tokens[1:]))
            self._read(rest)
            return [TableWrite(schema, table, None)]
        if not self._joins:
            raise _AmbiguousError
        # DELETE t FROM table AS t: the targets are aliases of what follows.
        named, rest = tokens[:start], tokens[start + 1 :]
        if not start and using is not None:
            named, rest = tokens[1:using], tokens[using + 1 :]
        self._read(rest)
        known = _references(rest[: _find(rest, *_CLAUSES)])
        return [
            TableWrite(*_known(known, _target(one).text.lower()), None)
            for one in split(named)
        ]

    def _read(self, tokens: Sequence[Token]) -> None:
        """Check that a part of a statement only reads.

        Raises:
            _AmbiguousError: It calls an unknown function, or may write or lock.
        """
        aliases = _listed_aliases(tokens)
        for index, token in enumerate(tokens):
            if token.kind not in {"word", "name"} or index in aliases:
                continue
            before = tokens[index - 1] if index else None
            after = tokens[index + 1] if index + 1 < len(tokens) else None
            if is_mark(after, "("):
                # An alias may have a list of columns.
                if not (is_word(before, "as") or self._is_harmless(tokens, index)):
                    raise _AmbiguousError
            elif is_word(token, *_VERBS) and not is_mark(before, "."):
                raise _AmbiguousError

    def _is_harmless(self, tokens: Sequence[Token], index: int) -> bool:
        """Whether the word before a parenthesis calls nothing that may write."""
        token = tokens[index]
        if index and is_mark(tokens[index - 1], "."):
            if index < 2 or not is_word(tokens[index - 2], "pg_catalog"):  # noqa: PLR2004 - a name and a dot
                return False
        elif is_word(token, "conflict", "set"):
            return True
        name = token.text.lower()
        return (token.kind == "word" or token.text == name) and self._computes(name)


_Table: TypeAlias = "tuple[Identifier | None, Identifier]"
_Known: TypeAlias = "dict[str, _Table | None]"


def _known(known: _Known, alias: str) -> _Table:
    table = known.get(alias)
    if table is None:
        raise _AmbiguousError
    return table


def _without_modifiers(tokens: Sequence[Token]) -> Sequence[Token]:
    while True:
        if is_word(tokens[0], *_MODIFIERS):
            tokens = tokens[1:]
        elif is_word(tokens[0], "or") and is_word(tokens[1], *_CONFLICTS):
            tokens = tokens[2:]
        else:
            return tokens


def _find(tokens: Sequence[Token], *words: str) -> int | None:
    """Return the index of the first of these keywords outside parentheses."""
    for index, token in outside_parentheses(tokens):
        if is_word(token, *words):
            before = tokens[index - 1] if index else None
            # IS DISTINCT FROM is an operator, and a word after a dot is a name.
            if not (is_word(before, "distinct") or is_mark(before, ".")):
                return index
    return None


def _end(tokens: Sequence[Token]) -> int:
    """Return the index where the parenthesis that these begin with is closed."""
    end = find_closing(tokens, 0) if is_mark(tokens[0], "(") else None
    if end is None:
        raise _AmbiguousError
    return end


def _name(tokens: Sequence[Token]) -> tuple[Identifier, Sequence[Token]]:
    kind, text = tokens[0]
    if kind not in {"word", "name"}:
        raise _AmbiguousError
    return Identifier(text, kind == "name"), tokens[1:]


def _only_name(tokens: Sequence[Token]) -> Identifier:
    name, rest = _name(tokens)
    if rest:
        raise _AmbiguousError
    return name


def _table(
    tokens: Sequence[Token],
) -> tuple[Identifier | None, Identifier, Sequence[Token]]:
    """Return a table's schema and name, and the tokens that follow."""
    if tokens[0].kind == "schema":
        # A placeholder of schema_translate_map, with the model's own schema.
        text = tokens[0].text
        name, rest = _name(tokens[2:])
        return (Identifier(text, quoted=True) if text else None), name, rest
    name, rest = _name(tokens)
    if not (rest and is_mark(rest[0], ".")):
        return None, name, rest
    table, rest = _name(rest[1:])
    if rest and is_mark(rest[0], "."):
        raise _AmbiguousError
    return name, table, rest


def _upserted(tokens: Sequence[Token]) -> tuple[Identifier, ...] | None:
    """Return the columns that an insert and its upsert clauses write.

    None is returned where there is no such clause, or where a column is not named.

    Args:
        tokens: What follows the table's name.
    """
    clauses = list(_conflict_clauses(tokens))
    parts = _inserted(tokens) if clauses else None
    if parts is None:
        return None
    for clause in clauses:
        parts += clause
    names = dict.fromkeys(map(_column, parts))
    return None if None in names else tuple(name for name in names if name)


def _conflict_clauses(tokens: Sequence[Token]) -> Iterator[list[Sequence[Token]]]:
    """Return the left sides that each clause of an upsert assigns to."""
    start = 0
    while (at := _find(tokens[start:], "do", "duplicate")) is not None:
        start += at + 1
        words = [one.text.lower() for one in tokens[start - 1 : start + 2]]
        if words[1:2] == ["nothing"]:
            yield []
        elif words in (["do", "update", "set"], ["duplicate", "key", "update"]):
            rest = tokens[start + 2 :]
            # SQLite may have several clauses: ON CONFLICT ... ON CONFLICT ...
            yield _assigned_to(rest[: _find(rest, "where", "returning", "on")])


def _assigned_to(tokens: Sequence[Token]) -> list[Sequence[Token]]:
    """Return the left side of each assignment; of a list, its columns."""
    found: list[Sequence[Token]] = []
    for part in split(tokens):
        sign = _sign(part)
        if sign + 1 == len(part):
            raise _AmbiguousError
        left = part[:sign]
        listed = is_mark(left[0], "(") and find_closing(left, 0) == len(left) - 1
        found += split(left[1:-1]) if listed else [left]
    return found


def _sign(part: Sequence[Token], *more: str) -> int:
    """Return the index of the sign of an assignment, or of one of these marks."""
    for index, token in enumerate(part):
        if is_mark(token, "=", ":=", *more):
            return index
    raise _AmbiguousError


def _inserted(tokens: Sequence[Token]) -> list[Sequence[Token]] | None:
    """Return the columns of an insert; None where it does not name them."""
    if is_word(tokens[0], "as"):
        tokens = tokens[2:]
    if is_word(tokens[0], "set"):  # MySQL's INSERT INTO t SET a = 1
        return _assigned_to(tokens[1 : _find(tokens, "on", "as")])
    if not is_mark(tokens[0], "(") or is_word(tokens[1], *_QUERIES):
        return None
    return split(tokens[1 : _end(tokens)])


def _column(tokens: Sequence[Token]) -> Identifier | None:
    """Return the column that these tokens name; None where that is not certain.

    The table's name may precede it on MySQL. On other servers an element or a field of
    the column may follow: it is not certain then.
    """
    return _name(tokens)[0] if len(tokens) == 1 else None


def _without_index(tokens: Sequence[Token]) -> Sequence[Token]:
    """Remove SQLite's INDEXED BY and NOT INDEXED, which follow a table's name."""
    if len(tokens) > 2 and is_word(tokens[-3], "indexed") and is_word(tokens[-2], "by"):  # noqa: PLR2004 - INDEXED BY and a name
        return tokens[:-3]
    if (
        len(tokens) > 1
        and is_word(tokens[-2], "not")
        and is_word(tokens[-1], "indexed")
    ):
        return tokens[:-2]
    return tokens


def _listed_aliases(tokens: Sequence[Token]) -> frozenset[int]:
    """Return the indexes of aliases that have a list of columns, but no AS.

    Such as ``v`` in ``FROM unnest(:ids) v(id)`` and ``JOIN (VALUES (1)) v(id)``.
    """
    found = set()
    for index in range(len(tokens) - 2):
        if not (is_mark(tokens[index], "(") and _opens_table(tokens, index)):
            continue
        end = find_closing(tokens, index) or len(tokens)
        if end + 2 < len(tokens) and is_mark(tokens[end + 2], "("):
            found.add(end + 1)
    return frozenset(found)


def _opens_table(tokens: Sequence[Token], start: int) -> bool:
    """Whether a parenthesis follows FROM, JOIN or LATERAL, or a function there."""
    if start and is_word(tokens[start - 1], *_BEFORE_TABLE):
        return True
    # FROM OPERATOR(...) f(x) calls f.
    return (
        start > 1
        and tokens[start - 1].kind in {"word", "name"}
        and not is_word(tokens[start - 1], "operator")
        and is_word(tokens[start - 2], *_BEFORE_TABLE)
    )


def _alias(tokens: Sequence[Token]) -> Identifier | None:
    """Return the alias that these tokens are; None if there are none."""
    if tokens and is_word(tokens[0], "as"):
        tokens = tokens[1:]
    return _only_name(tokens) if tokens else None


def _references(tokens: Sequence[Token]) -> _Known:
    """Return tables by lower-case alias; None for a derived table."""
    known: _Known = {}
    for part in split(tokens):
        rest = part
        while True:
            alias, table, rest = _reference(rest)
            known[alias.text.lower()] = table
            join = _find(rest, *_JOINS)
            if join is None:
                break
            rest = rest[join + 1 :]
    return known


def _reference(
    tokens: Sequence[Token],
) -> tuple[Identifier, _Table | None, Sequence[Token]]:
    """Return a table's alias, the table itself, and the tokens that follow."""
    table = None
    if is_mark(tokens[0], "("):
        end = _end(tokens)
        if not is_word(tokens[1], "select", "values", "with"):
            raise _AmbiguousError
        alias, rest = None, tokens[end + 1 :]
    else:
        schema, alias, rest = _table(tokens)
        table = schema, alias
    if rest and is_word(rest[0], "as"):
        alias, rest = _name(rest[1:])
    elif rest and not is_word(rest[0], *_NO_ALIAS, *_JOINS):
        alias, rest = _name(rest)
    if alias is None:
        raise _AmbiguousError
    return alias, table, rest


def _target(tokens: Sequence[Token]) -> Identifier:
    """Return the last part of the name of a delete's target."""
    if len(tokens) > 1 and is_mark(tokens[-1], "*") and is_mark(tokens[-2], "."):
        tokens = tokens[:-2]
    return [_only_name(one) for one in split(tokens, ".")][-1]
