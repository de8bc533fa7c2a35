"""The numbers behind a user's name, as the container's own /etc/passwd and /etc/group have them.

No NSS: the host's users mean nothing inside, and a C library's lookup would load code from the
container (CVE-2019-14271). The files are the image's, so hostile: what can't be read strictly is
no entry, never uid 0.
Source: moby/sys/user's grammar, passwd(5), group(5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pycontain.errors import InvalidInput, UntrustedContent
from pycontain.oci import User
from pycontain.runtime.rootfs import read_small_file

__all__ = ["lookup"]

_MAX_ID = 2**31 - 1
_MAX_GROUPS = 65_536  # the kernel's NGROUPS_MAX


def lookup(root_fd: int, user: str, group_add: Sequence[str | int] = ()) -> tuple[User, str]:
    """The ids and home directory of "", "name", "name:group", "uid" or "uid:gid" in the root.

    What looks like a number is one, even where passwd has a user of that name (CVE-2026-46680), and
    a number beyond 2**31 - 1 is refused instead of wrapping round to root (CVE-2024-40635). A uid
    without an entry has group 0 and home "/". An explicit group replaces the supplementary groups.
    Root by number needs no file: it has home /root and no supplementary groups but `group_add`.

    Raises:
        InvalidInput: an unknown name or an impossible number; `field` is user or group_add.
        UntrustedContent: passwd or group is no ordinary file, or over 1 MiB.
    """
    name, colon, group = user.partition(":")
    if "\0" in user or ":" in group or (colon and not group) or (user and not name):
        raise InvalidInput(f"{user!r} is not USER[:GROUP]", field="user")
    uid = _number(name, "user") if name else 0
    group_id = _number(group, "user") if group else None
    gid = 0
    home = "/root" if uid == 0 else "/"
    gids: list[int] = []
    group_text: str | None = None
    if uid != 0:
        found = _find_user(_read(root_fd, "/etc/passwd"), name, uid)
        if found is not None:
            name, uid, gid, home = found
        if uid is None:
            raise InvalidInput(f"the image's /etc/passwd has no user {name!r}", field="user")
        if found is not None and not group:
            group_text = _read(root_fd, "/etc/group")
            gids = [gid for _, gid, members in _groups(group_text) if name in members]
    if group:
        if group_id is None:
            group_text = _read(root_fd, "/etc/group")
            group_id = _find_group(group_text, group, "user")
        gid = group_id
    for extra in group_add:
        extra_id = _number(str(extra), "group_add")
        if extra_id is None:
            if group_text is None:
                group_text = _read(root_fd, "/etc/group")
            extra_id = _find_group(group_text, str(extra), "group_add")
        gids.append(extra_id)
    if len(gids) > _MAX_GROUPS:
        raise UntrustedContent(f"the container's /etc/group has {name!r} in {len(gids)} groups")
    return User(uid, gid, tuple(dict.fromkeys(gids))), home


def _number(text: str, field: str) -> int | None:
    """The id that `text` is; None if it is a name.

    Raises:
        InvalidInput: a number out of range, or what other parsers would take for a number.
    """
    if text.isascii() and text.isdigit():
        if len(text) <= 10 and int(text) <= _MAX_ID:
            return int(text)
    elif text and text[0] not in "+-":
        return None
    raise InvalidInput(f"{text!r} is not an id from 0 to {_MAX_ID}", field=field)


def _entry_id(text: str) -> int | None:
    """The id in a line of passwd or group; None if it is not one."""
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID:
        return int(text)
    return None


def _read(root_fd: int, path: str) -> str:
    content = read_small_file(root_fd, path)
    return "" if content is None else content.decode("utf-8", "surrogateescape")


def _find_user(text: str, name: str, uid: int | None) -> tuple[str, int, int, str] | None:
    """(name, uid, gid, home) of the first entry with this uid or, if it is None, this name."""
    for line in text.split("\n"):
        fields = line.split(":")
        if len(fields) < 6:
            continue
        entry_uid, entry_gid = _entry_id(fields[2]), _entry_id(fields[3])
        if entry_uid is None or entry_gid is None:
            continue
        if fields[0] == name if uid is None else entry_uid == uid:
            home = fields[5] if fields[5].startswith("/") and "\0" not in fields[5] else "/"
            return fields[0], entry_uid, entry_gid, home
    return None


def _groups(text: str) -> Iterator[tuple[str, int, list[str]]]:
    """(name, gid, members) of each well-formed entry."""
    for line in text.split("\n"):
        fields = line.split(":")
        if len(fields) == 4 and (gid := _entry_id(fields[2])) is not None:
            yield fields[0], gid, fields[3].split(",")


def _find_group(text: str, name: str, field: str) -> int:
    for entry_name, gid, _ in _groups(text):
        if entry_name == name:
            return gid
    raise InvalidInput(f"the image's /etc/group has no group {name!r}", field=field)
