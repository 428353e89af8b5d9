"""RQ jobs that read, on replicas, what was written before they were enqueued.

    app = create_app(
        SQLALCHEMY_DATABASE_URI="postgresql+psycopg://...",
        SQLALCHEMY_BINDS={"slave_1": "postgresql+psycopg://...", ...},
        REDIS_URL="redis://localhost",
    )
    work(app)  # in a worker's process

There are two ways. `POST /orders/<item>/explicit` gives the token to its job as an
argument. `POST /orders/<item>` does not speak of it: `ReplicatedJob` keeps it in every
job's meta, and lets every job read what it stands for.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, current_app, has_app_context
from flask_sqlalchemy import SQLAlchemy
from redis import Redis
from rq import Queue, Worker
from rq.job import Job
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_replicated import FlaskReplicated, using_slave, using_token

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Order", "ReplicatedJob", "create_app", "db", "work"]

TOKEN = "replicated_token"


class Base(DeclarativeBase):
    """The base class of all models."""


db = SQLAlchemy(model_class=Base)
replicated = FlaskReplicated()
pages = Blueprint("orders", __name__)


class Order(db.Model):  # type: ignore[name-defined]  # a run-time class
    """What a customer has ordered."""

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    shipped: Mapped[bool] = mapped_column(default=False)


def create_app(**settings: object) -> Flask:
    """Return an application that takes orders, with its queue.

    Args:
        settings: Its configuration; ``REDIS_URL`` is where RQ keeps its jobs.
    """
    app = Flask(__name__)
    app.config.update(settings)
    db.init_app(app)
    replicated.init_app(app)
    app.register_blueprint(pages)
    redis = Redis.from_url(app.config["REDIS_URL"])
    app.extensions["queue"] = Queue(connection=redis, job_class=ReplicatedJob)
    return app


# --- what every application needs, once -----------------------------------------


class ReplicatedJob(Job):
    """A job that sees what whoever has enqueued it has seen."""

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep what the caller has committed: a request, or another job."""
        job: Self = super().create(*args, **kwargs)
        if has_app_context():
            job.meta = {**job.meta, TOKEN: replicated.token()}
        return job

    def perform(self) -> Any:
        """Run with a session of its own, which sees that and what it depends on."""
        before = [self, *self.fetch_dependencies()]
        with current_app.app_context(), ExitStack() as blocks:
            for job in before:
                blocks.enter_context(using_token(job.meta.get(TOKEN)))
            try:
                return super().perform()
            finally:
                # For another attempt, and for jobs that depend on this one.
                self.meta[TOKEN] = replicated.token()
                self.save_meta()


def work(app: Flask) -> None:
    """Run jobs until a signal ends that: ``rq worker``, inside the application."""
    queue = app.extensions["queue"]
    with app.app_context():
        Worker([queue], connection=queue.connection, job_class=ReplicatedJob).work()


# --- jobs -----------------------------------------------------------------------


def describe(order_id: int) -> str:
    """Read an order."""
    order = db.session.scalars(select(Order).filter_by(id=order_id)).one()
    return f"{order.item}, {'shipped' if order.shipped else 'ordered'}"


@using_slave()
def receipt(order_id: int) -> str:
    """Describe an order as whoever has enqueued this has left it, or later."""
    return describe(order_id)


def receipt_by_token(order_id: int, token: str) -> str:
    """Do the same, given the token by hand."""
    with using_token(token), using_slave():
        return describe(order_id)


def ship(order_id: int) -> str:
    """Change an order; jobs that are enqueued from here, or depend on this, see it."""
    order = db.session.scalars(select(Order).filter_by(id=order_id)).one()
    order.shipped = True
    db.session.commit()
    return enqueue(receipt, order_id)


# --- requests -------------------------------------------------------------------


def enqueue(job: object, *args: object) -> str:
    """Enqueue a job, and return its id."""
    return str(current_app.extensions["queue"].enqueue(job, *args).id)


def add_order(item: str) -> Order:
    """Commit an order. Its job is enqueued afterwards: earlier, there is no token."""
    order = Order(item=item)
    db.session.add(order)
    db.session.commit()
    return order


@pages.post("/orders/<item>")
def take_order(item: str) -> dict[str, object]:
    """Take an order, and send its receipt."""
    order = add_order(item)
    return {"order": order.id, "job": enqueue(receipt, order.id)}


@pages.post("/orders/<item>/explicit")
def take_order_by_token(item: str) -> dict[str, object]:
    """Do the same, and give the token by hand."""
    order = add_order(item)
    job = enqueue(receipt_by_token, order.id, replicated.token())
    return {"order": order.id, "job": job}


@pages.post("/orders/<int:order_id>/ship")
def ship_order(order_id: int) -> dict[str, object]:
    """Let a job ship an order, which sends the receipt in turn."""
    return {"order": order_id, "job": enqueue(ship, order_id)}
