"""Celery tasks that read, on replicas, what was written before they were sent.

    app = create_app(
        SQLALCHEMY_DATABASE_URI="postgresql+psycopg://...",
        SQLALCHEMY_BINDS={"slave_1": "postgresql+psycopg://...", ...},
        CELERY={"broker_url": "redis://localhost", "result_backend": "rpc://"},
    )
    celery_app = app.extensions["celery"]  # for `celery -A this_module worker`

There are two ways. `POST /orders/<item>/explicit` gives the token to its task as an
argument. `POST /orders/<item>` does not speak of it: `send_token` puts it into a header
of every task's message, and `make_celery` lets every task read what it stands for.
"""

from __future__ import annotations

from typing import Any

from celery import Celery, Task, current_task, shared_task
from celery.signals import before_task_publish
from flask import Blueprint, Flask, has_app_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_replicated import FlaskReplicated, using_slave, using_token

__all__ = ["Order", "create_app", "db", "receipt", "receipt_by_token", "ship"]

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
    """Return an application that takes orders, with its Celery application.

    Args:
        settings: Its configuration; ``CELERY`` is that of Celery.
    """
    app = Flask(__name__)
    app.config.update(settings)
    db.init_app(app)
    replicated.init_app(app)
    app.register_blueprint(pages)
    app.extensions["celery"] = make_celery(app)
    return app


# --- what every application needs, once -----------------------------------------


def make_celery(app: Flask) -> Celery:
    """Return a Celery application whose tasks see what their sender has seen."""

    class ReplicatedTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            token = self.request.get(TOKEN)
            with app.app_context(), using_token(token):
                try:
                    return self.run(*args, **kwargs)
                finally:
                    if not self.request.called_directly:
                        # For the next task of a chain, and for callbacks.
                        setattr(self.request, TOKEN, replicated.token())

    celery = Celery(app.name, task_cls=ReplicatedTask)
    celery.config_from_object(app.config["CELERY"])
    celery.set_default()
    return celery


@before_task_publish.connect
def send_token(headers: dict[str, Any], **_: object) -> None:
    """Send along what the sender has committed: a request, or another task."""
    token = replicated.token() if has_app_context() else ""
    if not token and current_task:
        token = current_task.request.get(TOKEN)  # it has ended, and is followed
    headers[TOKEN] = token


# --- tasks ----------------------------------------------------------------------


def describe(order_id: int) -> str:
    """Read an order."""
    order = db.session.scalars(select(Order).filter_by(id=order_id)).one()
    return f"{order.item}, {'shipped' if order.shipped else 'ordered'}"


@shared_task
@using_slave()
def receipt(order_id: int) -> str:
    """Describe an order as the sender of this task has left it, or later."""
    return describe(order_id)


@shared_task
def receipt_by_token(order_id: int, token: str) -> str:
    """Do the same, given the token by hand."""
    with using_token(token), using_slave():
        return describe(order_id)


@shared_task
def ship(order_id: int) -> str:
    """Change an order; tasks that are sent from here, or follow, see the change."""
    order = db.session.scalars(select(Order).filter_by(id=order_id)).one()
    order.shipped = True
    db.session.commit()
    return str(receipt.delay(order_id).id)


# --- requests -------------------------------------------------------------------


def add_order(item: str) -> Order:
    """Commit an order. A task is sent afterwards: earlier, there is no token yet."""
    order = Order(item=item)
    db.session.add(order)
    db.session.commit()
    return order


@pages.post("/orders/<item>")
def take_order(item: str) -> dict[str, object]:
    """Take an order, and send its receipt."""
    order = add_order(item)
    return {"order": order.id, "job": receipt.delay(order.id).id}


@pages.post("/orders/<item>/explicit")
def take_order_by_token(item: str) -> dict[str, object]:
    """Do the same, and give the token by hand."""
    order = add_order(item)
    job = receipt_by_token.delay(order.id, replicated.token())
    return {"order": order.id, "job": job.id}


@pages.post("/orders/<int:order_id>/ship")
def ship_order(order_id: int) -> dict[str, object]:
    """Let a task ship an order, which sends the receipt in turn."""
    return {"order": order_id, "job": ship.delay(order_id).id}
