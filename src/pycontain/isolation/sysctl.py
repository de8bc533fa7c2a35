"""Which kernel parameters a container may set: those of its own namespaces, and no others.

Everything else under /proc/sys is the host's. Names are checked by an allow-list and by grammar,
since a separator smuggled into a name or value sets another parameter (CVE-2022-0811).
Source: namespaces(7), proc(5), docs of /proc/sys.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from pycontain.errors import InvalidSpec
from pycontain.oci import Namespace

_IPC = frozenset(
    f"kernel.{name}"
    for name in (
        *("msgmax", "msgmnb", "msgmni", "sem"),
        *("shmall", "shmmax", "shmmni", "shm_rmid_forced"),
    )
)
_UTS = frozenset(("kernel.hostname", "kernel.domainname"))
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_OWN_LINKS = {"network": "net", "ipc": "ipc", "uts": "uts"}


def check(
    sysctl: Iterable[tuple[str, str]], namespaces: Iterable[Namespace]
) -> list[tuple[str, str]]:
    """Return (path beneath /proc/sys, value) of each parameter, in order.

    A namespace that is joined by path counts as the container's own unless it is ours.

    Raises:
        InvalidSpec: a name or value that is malformed, not namespaced, or whose namespace the
            container shares with the host; the field is `sysctl[name]`.
    """
    wanted = list(sysctl)
    if not wanted:
        return []
    own = {namespace.type for namespace in namespaces if not _is_hosts(namespace)}
    checked = []
    for name, value in wanted:
        field = f"sysctl[{name}]"
        _check_grammar(name, value, field)
        needed = _namespace_of(name)
        if needed is None:
            raise InvalidSpec(
                "belongs to the host, not to a namespace",
                field=field,
                hint="net.*, fs.mqueue.*, kernel.msg*, kernel.sem, kernel.shm* can be set",
            )
        if needed not in own:
            raise InvalidSpec(f"needs a {needed} namespace of the container's own", field=field)
        checked.append((name.replace(".", "/"), value))
    return checked


def _namespace_of(name: str) -> str | None:
    if name.startswith("net."):
        return "network"
    if name in _IPC or name.startswith("fs.mqueue."):
        return "ipc"
    return "uts" if name in _UTS else None


def _check_grammar(name: str, value: str, field: str) -> None:
    parts = name.split(".")
    if len(parts) < 2 or not all(part and _NAME_CHARACTERS.issuperset(part) for part in parts):
        raise InvalidSpec(
            "not a parameter's name", field=field, hint="words of letters, digits, _ and -, dotted"
        )
    if len(value) > 4095 or not all(char == "\t" or " " <= char <= "~" for char in value):
        raise InvalidSpec(f"{value!r} is not one line of printable ASCII", field=field)


def _is_hosts(namespace: Namespace) -> bool:
    link = _OWN_LINKS.get(namespace.type)
    if namespace.path is None or link is None:
        return False
    try:
        joined, ours = os.stat(namespace.path), os.stat(f"/proc/self/ns/{link}")
    except OSError as error:
        raise InvalidSpec(
            f"{namespace.path}: {error.strerror}", field=f"namespaces[{namespace.type}]"
        ) from error
    return (joined.st_dev, joined.st_ino) == (ours.st_dev, ours.st_ino)
