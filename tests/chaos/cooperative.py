"""The application under load, where threads are greenlets."""

from gevent import monkey

monkey.patch_all()

from .app import served  # noqa: E402 - what is imported now finds greenlets

__all__ = ["served"]
