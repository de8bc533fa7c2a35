"""What an image argument means: a transport and a path, as skopeo writes them, or a stored name."""

from __future__ import annotations

import os

from pycontain.errors import InvalidReference
from pycontain.values import frozen

TRANSPORTS = ("oci", "oci-archive", "docker-archive", "rootfs")
FORMS = (
    "a stored name or id (see `pycontain image ls`), oci:DIR[:TAG], oci-archive:FILE[:TAG], "
    "docker-archive:FILE[:REF], rootfs:DIR, pycontain/hello"
)
MAX_NAME_CHARS = 255
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_WORD = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")


@frozen
class Reference:
    """`transport` is one of TRANSPORTS with an absolute `path`, or "" with a familiar `name`.

    `name` is the tag or reference inside the archive for the transports, "" if not given.
    """

    transport: str
    path: str
    name: str


def parse(argument: str) -> Reference:
    """Returns what `argument` names.

    Raises:
        InvalidReference: no grammar accepts it.
    """
    if not argument or "\0" in argument:
        raise InvalidReference("empty image reference", hint=FORMS)
    transport, colon, rest = argument.partition(":")
    if colon and transport in TRANSPORTS:
        path, _, name = (rest, "", "") if transport == "rootfs" else rest.partition(":")
        if not path:
            raise InvalidReference(f"{argument!r} has no path", hint=FORMS)
        return Reference(transport, os.path.abspath(path), name)
    if argument.startswith("sha256:"):
        return Reference("", "", argument)
    return Reference("", "", familiar(argument))


def familiar(name: str) -> str:
    """Returns `name` in its one stored form: without Docker Hub's prefixes, with a tag.

    Raises:
        InvalidReference: not a repository with an optional tag (distribution-spec, "Pulling").
    """
    for prefix in ("docker.io/", "index.docker.io/"):
        if name.startswith(prefix):
            name = name[len(prefix) :].removeprefix("library/")
    slash = name.rfind("/") + 1
    last, colon, tag = name[slash:].partition(":")
    repository = name[:slash] + last
    if "@" in name:
        raise InvalidReference(f"{name!r} has a digest", hint="name a stored image by its id")
    if len(name) > MAX_NAME_CHARS or not _is_repository(repository):
        raise InvalidReference(f"{name!r} is not an image reference", hint=FORMS)
    tag = tag if colon else "latest"
    if not is_tag(tag):
        raise InvalidReference(f"{name!r} has no valid tag", hint=FORMS)
    return f"{repository}:{tag}"


def is_tag(tag: str) -> bool:
    """True for a word of at most 128 letters, digits and "_.-" that begins with none of ".-"."""
    return 0 < len(tag) <= 128 and tag[0] in _WORD and all(c in _WORD or c in ".-" for c in tag)


def _is_repository(text: str) -> bool:
    parts = text.split("/")
    if len(parts) > 1 and (":" in parts[0] or "." in parts[0] or parts[0] == "localhost"):
        host, _, port = parts.pop(0).partition(":")
        if (
            not all(c in _WORD or c in ".-" for c in host)
            or not host
            or (port and not port.isdigit())
        ):
            return False
    return all(
        part
        and part[0] in _LOWER
        and part[-1] in _LOWER
        and all(c in _LOWER or c in "._-" for c in part)
        for part in parts
    )
