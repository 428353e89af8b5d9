"""Quart is told that it is not supported."""

from __future__ import annotations

import pytest
from quart import Quart

from flask_replicated import ConfigurationError, FlaskReplicated


def main() -> None:
    """Register the extension on a Quart application."""
    app: object = Quart("shop")
    with pytest.raises(ConfigurationError, match="Quart"):
        FlaskReplicated(app)  # type: ignore[arg-type]  # that is what is tried


if __name__ == "__main__":
    main()
