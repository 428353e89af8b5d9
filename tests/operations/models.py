"""The models that the operations use, shared by every application of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    deferred,
    mapped_column,
    relationship,
)


class Base(DeclarativeBase):
    """The base of all models."""


db = SQLAlchemy(model_class=Base)

if TYPE_CHECKING:
    from sqlalchemy.orm import Query

    class Model(Base):
        """What ``db.Model`` is to a type checker."""

        query: ClassVar[Query[Author]]
        __table__: ClassVar[Table]
else:
    Model = db.Model


class Author(Model):
    """Somebody with books and an account."""

    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    about: Mapped[str | None] = deferred(mapped_column(String(50)))
    books: Mapped[list[Book]] = relationship(
        back_populates="author", order_by="Book.id"
    )
    account: Mapped[Account | None] = relationship()


class Book(Model):
    """Somebody's book."""

    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50))
    author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author | None] = relationship(back_populates="books")


class Account(Model):
    """What must never be read stale."""

    __tablename__ = "account"
    __replicated__ = "master"

    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))


class Country(Model):
    """What requests write when it does not matter what."""

    __tablename__ = "country"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


class Visit(Model):
    """A row of another bind, which has a replica."""

    __bind_key__ = "analytics"
    __tablename__ = "visit"

    id: Mapped[int] = mapped_column(primary_key=True)
    page: Mapped[str] = mapped_column(String(50))


class Draft(Model):
    """A row of a third bind, which has no replica."""

    __bind_key__ = "drafts"
    __tablename__ = "draft"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(50))


author = Author.__table__
book = Book.__table__

# Made and dropped by operations; no part of any model's metadata.
scratch = Table("scratch", MetaData(), Column("id", Integer, primary_key=True))
