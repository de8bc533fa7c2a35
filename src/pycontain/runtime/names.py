"""What containers are called: ids, names, and names for those who can't think of one."""

from __future__ import annotations

import os

from pycontain.errors import InvalidInput

__all__ = ["check_name", "is_name", "new_id", "random_name"]

_MAX_NAME = 64
_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-")
_REST = _FIRST | {"."}
_ADJECTIVES = (
    "able amber brave brisk calm clever crisp eager early fair fond gentle glad golden happy "
    "honest humble jolly keen kind lively lucky merry mild neat nimble noble patient proud quick "
    "quiet ready sharp silent silver steady sunny swift tidy warm wise witty"
)
_SURNAMES = (
    "babbage bell booth clarke curie dijkstra engelbart erdos euler fermi feynman franklin gauss "
    "germain goldberg hamilton hopper hypatia johnson kay keller kernighan knuth lamarr lamport "
    "liskov lovelace mccarthy meitner mirzakhani newton noether perlman ritchie sammet shannon "
    "thompson torvalds turing wilkes wing"
)


def is_name(text: str) -> bool:
    """Whether `text` is fit to be a name or id, and so one component of a path."""
    return 0 < len(text) <= _MAX_NAME and text[0] in _FIRST and _REST.issuperset(text)


def check_name(name: str, *, field: str = "name") -> str:
    """`name` itself, which is fit to be a container's name or id.

    Raises:
        InvalidInput: not 1 to 64 of A-Z a-z 0-9 _ + - and, but for the first, "."
    """
    if is_name(name):
        return name
    raise InvalidInput(
        f"{name!r} is not 1 to {_MAX_NAME} letters, digits or _ + - .",
        field=field,
        hint="the first is not a dot",
    )


def new_id() -> str:
    """64 random hexadecimal digits; the first 12 are the short id."""
    return os.urandom(32).hex()


def random_name() -> str:
    """A name for people to type, such as brave_hopper; not necessarily free."""
    first, second = os.urandom(2), os.urandom(2)
    adjectives, surnames = _ADJECTIVES.split(), _SURNAMES.split()
    return (
        adjectives[int.from_bytes(first) % len(adjectives)]
        + "_"
        + surnames[int.from_bytes(second) % len(surnames)]
    )
