"""The suites that are run, and which of their tests may end differently, and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SUITES", "Suite"]


@dataclass(frozen=True)
class Suite:
    """The tests in the source distribution of one project.

    Attributes:
        name: The project's name.
        version: The version that is tested.
        extras: The project's extras that its tests need.
        requirements: What else its tests need.
        arguments: What pytest is given besides, such as the folder of the tests.
        expected: Parts of test ids, each with the argument why such a test may end
            differently.
    """

    name: str
    version: str
    extras: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    expected: tuple[tuple[str, str], ...] = ()

    def argument(self, test: str) -> str | None:
        """Return why a test may end differently, or None where it must not."""
        return next((why for part, why in self.expected if part in test), None)


# What was current when these versions were released, where newer ones deprecate
# something and the suite takes warnings for errors.
_TOOLS = ("pytest<9", "sqlalchemy<2.1", "wtforms<3.3")

_FLASK_SQLALCHEMY = Suite(
    "flask-sqlalchemy",
    "3.1.1",
    requirements=_TOOLS,
)

_FLASK_SECURITY = Suite(
    "flask-security",
    "5.7.1",
    requirements=(
        *_TOOLS,
        "argon2-cffi",
        "authlib",
        "bcrypt",
        "bleach",
        "cryptography",
        "flask-babel",
        "flask-mail",
        "flask-sqlalchemy",
        "freezegun",
        "phonenumberslite",
        "qrcode",
        "requests",
        "sqlalchemy-utils",
        "webauthn",
        "zxcvbn",
    ),
)

_FLASK_ADMIN = Suite(
    "flask-admin",
    "2.2.1",
    extras=("sqlalchemy-with-utils", "export", "images", "translation"),
    requirements=(
        *_TOOLS,
        "beautifulsoup4",
        "boto3",
        "flask-sqlalchemy",
        "flask-sqlalchemy-lite",
        "flask[async]",
        "geoalchemy2",
        "moto",
        "peewee",
        "psycopg2-binary",
        "shapely",
        "wtf-peewee",
    ),
    arguments=(
        "flask_admin/tests/sqla",
        # It looks for a server of its own on this machine.
        "--ignore=flask_admin/tests/sqla/test_postgres.py",
    ),
)

_IHATEMONEY = Suite("ihatemoney", "7.2.1", requirements=(*_TOOLS, "pytest-flask>=1.3"))

SUITES = {
    suite.name: suite
    for suite in (_FLASK_SQLALCHEMY, _FLASK_SECURITY, _FLASK_ADMIN, _IHATEMONEY)
}
