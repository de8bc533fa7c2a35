"""Docker's `--mount`, `-v` and `--tmpfs` become `Mount`s.

Only the grammar is decided here: nothing is opened, and whether a source exists is seen when it is
mounted. Destinations are normalised as text; links in them are the mount step's business, which
resolves them inside the container's root.
"""

from __future__ import annotations

import os
import posixpath

from pycontain.errors import InvalidInput
from pycontain.oci import IdMap, Mount
from pycontain.runtime.units import parse_bytes

__all__ = ["parse_mount", "parse_tmpfs", "parse_volume"]

PROPAGATIONS = frozenset(("private", "rprivate", "slave", "rslave", "shared", "rshared"))
_FLAGS = frozenset(
    [
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "noatime",
        "relatime",
        "strictatime",
        "diratime",
        "nodiratime",
        "symfollow",
        "nosymfollow",
    ]
)
# Read by docker for SELinux labels and for macOS hosts; nothing to do where neither is.
_IGNORED = frozenset(("z", "Z", "cached", "delegated", "consistent"))
_TRUE = ("", "1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def parse_volume(text: str, *, field: str = "volumes") -> Mount:
    """The bind mount that `/host:/container[:ro,rslave,...]` means; recursive, private unless said.

    `ro` is recursive: a read-only volume has no writable file system below it (docker >= 25).
    A source that begins with "." is relative to the working directory.

    Raises:
        InvalidInput: a volume's name instead of a path, an unknown option, a bad destination.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise InvalidInput(f"{text!r} is not HOST:CONTAINER[:OPTIONS]", field=field)
    source = _host_path(parts[0], field)
    options = ["rbind"]
    propagation = "rprivate"
    for word in filter(None, parts[2].split(",") if len(parts) == 3 else ()):
        if word in ("ro", "rro"):
            options.append("rro")
        elif word == "bind":
            options[0] = "bind"
        elif word in PROPAGATIONS:
            propagation = word
        elif word in _FLAGS and word != "rw":
            options.append(word)
        elif word not in ("rw", "rbind") and word not in _IGNORED:
            raise InvalidInput(f"{text!r}: unknown option {word!r}", field=field)
    options.append(propagation)
    return Mount(destination(parts[1], field), "bind", source, tuple(options))


def parse_tmpfs(text: str, *, field: str = "tmpfs") -> Mount:
    """The tmpfs that `/run[:size=64m,mode=1777,exec,...]` means; nosuid,nodev,noexec unless said.

    Raises:
        InvalidInput: an unknown option or a bad destination.
    """
    path, _, words = text.partition(":")
    flags = {"suid": "nosuid", "dev": "nodev", "exec": "noexec"}
    options = []
    for word in filter(None, words.split(",")):
        key, equals, value = word.partition("=")
        if equals and key == "size":
            options.append(f"size={_tmpfs_size(value, field)}")
        elif equals and key == "mode":
            options.append(f"mode={_octal(value, field):o}")
        elif equals and key in ("uid", "gid", "nr_inodes") and value.isascii() and value.isdigit():
            options.append(word)
        elif word in flags:
            flags[word] = word
        elif word not in flags.values():
            if word not in _FLAGS:
                raise InvalidInput(f"{text!r}: unknown option {word!r}", field=field)
            options.append(word)
    kept = [word for word in flags.values() if word.startswith("no")]
    return Mount(destination(path, field), "tmpfs", "tmpfs", (*kept, *options))


def parse_mount(text: str, *, field: str = "mounts") -> Mount:
    """The mount that `type=bind,src=/a,dst=/b,readonly,...` means (docker's `--mount`).

    Types are bind and tmpfs. A value with a comma is quoted as in CSV: `"src=/a,b"`. Beyond docker,
    `uidmap=C:H:N` and `gidmap=C:H:N` (repeatable) map the owners of a bind's files; `idmap` alone
    maps them as the container's user namespace does.

    Raises:
        InvalidInput: an unknown type or key, a key of the other type, no source or destination.
    """
    keys: dict[str, str] = {}
    maps: dict[str, list[IdMap]] = {"uidmap": [], "gidmap": []}
    for word in _csv_fields(text, field):
        key, equals, value = word.partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        if key in maps:
            maps[key].append(_id_map(value, field))
        elif not equals and key not in _SWITCHES:
            raise InvalidInput(f"{word!r} is not KEY=VALUE", field=field)
        elif key in keys:
            raise InvalidInput(f"{key} is given twice", field=field)
        else:
            keys[key] = value
    kind = keys.pop("type", "volume")
    if kind not in ("bind", "tmpfs"):
        hint = "named volumes do not exist yet: use type=bind with a host path, or type=tmpfs"
        raise InvalidInput(f"type={kind} is not possible", field=field, hint=hint)
    target = destination(keys.pop("target", ""), field)
    if kind == "tmpfs":
        options = _tmpfs_options(keys, field)
        source = "tmpfs"
    else:
        source = _host_path(keys.pop("source", ""), field)
        options = _bind_options(keys, field)
    if keys or (kind == "tmpfs" and any(maps.values())):
        unknown = next(iter(keys), "idmap")
        raise InvalidInput(f"{unknown!r} is no key of type={kind}", field=field)
    if any(maps.values()):
        if not all(maps.values()):
            raise InvalidInput("uidmap and gidmap belong together", field=field)
        options = [*(word for word in options if word != "idmap"), "idmap"]
    return Mount(target, kind, source, tuple(options), tuple(maps["uidmap"]), tuple(maps["gidmap"]))


_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_SWITCHES = frozenset(("readonly", "bind-nonrecursive", "idmap"))


def _bind_options(keys: dict[str, str], field: str) -> list[str]:
    """The options of a bind mount; takes its keys out of `keys`."""
    recursive = keys.pop("bind-recursive", "enabled")
    if recursive not in ("enabled", "disabled", "writable", "readonly"):
        raise InvalidInput(f"bind-recursive={recursive!r} is unknown", field=field)
    if _switch(keys, "bind-nonrecursive", field):
        recursive = "disabled"
    options = ["bind" if recursive == "disabled" else "rbind"]
    if _switch(keys, "readonly", field):
        options.append("rro" if recursive in ("enabled", "readonly") else "ro")
    if _switch(keys, "idmap", field):
        options.append("idmap")
    propagation = keys.pop("bind-propagation", "rprivate")
    if propagation not in PROPAGATIONS:
        raise InvalidInput(f"bind-propagation={propagation!r} is unknown", field=field)
    keys.pop("consistency", None)
    options.append(propagation)
    return options


def _tmpfs_options(keys: dict[str, str], field: str) -> list[str]:
    """The options of a tmpfs; takes its keys out of `keys`."""
    options = ["nosuid", "nodev", "noexec"]
    if _switch(keys, "readonly", field):
        options.append("ro")
    if "tmpfs-size" in keys:
        options.append(f"size={_tmpfs_size(keys.pop('tmpfs-size'), field)}")
    if "tmpfs-mode" in keys:
        options.append(f"mode={_octal(keys.pop('tmpfs-mode'), field):o}")
    return options


def destination(path: str, field: str) -> str:
    """The absolute, normalised path of a mount in the container, which is not the root.

    Raises:
        InvalidInput: relative, "/", too long or with a NUL.
    """
    if not path.startswith("/") or "\0" in path or len(path) >= 4096:
        raise InvalidInput(f"{path!r} is not an absolute path in the container", field=field)
    path = "/" + posixpath.normpath(path).lstrip("/")
    if path == "/":
        raise InvalidInput("the container's root can't be a mount's destination", field=field)
    return path


def _host_path(path: str, field: str) -> str:
    if not path or "\0" in path:
        raise InvalidInput("no source", field=field)
    if path[0] not in "/.":
        raise InvalidInput(
            f"{path!r} is a volume's name, and named volumes do not exist yet",
            field=field,
            hint=f"for a directory of the host write /{path} or ./{path}",
        )
    return os.path.abspath(path)


def _switch(keys: dict[str, str], key: str, field: str) -> bool:
    """Whether a switch is on: absent is off, without a value is on."""
    value = keys.pop(key, None)
    if value is None or value.lower() in _FALSE:
        return False
    if value.lower() in _TRUE:
        return True
    raise InvalidInput(f"{key}={value!r} is neither true nor false", field=field)


def _tmpfs_size(value: str, field: str) -> str:
    """Bytes as digits, or a percentage of memory, which tmpfs knows by itself."""
    percent = value.removesuffix("%")
    if percent != value and percent.isascii() and percent.isdigit() and 0 < int(percent) <= 100:
        return value
    return str(parse_bytes(value, field=field))


def _octal(value: str, field: str) -> int:
    if 1 <= len(value) <= 6 and all(digit in "01234567" for digit in value):
        mode = int(value, 8)
        if mode <= 0o7777:
            return mode
    raise InvalidInput(f"{value!r} is not an octal mode", field=field)


def _id_map(value: str, field: str) -> IdMap:
    parts = value.split(":")
    if len(parts) == 3 and all(p.isascii() and p.isdigit() and len(p) <= 10 for p in parts):
        return IdMap(*map(int, parts))
    raise InvalidInput(f"{value!r} is not CONTAINER:HOST:SIZE", field=field)


def _csv_fields(text: str, field: str) -> list[str]:
    """The comma-separated fields of one CSV line; "" inside quotes is a quote (RFC 4180)."""
    fields = []
    position = 0
    while position <= len(text):
        if text[position : position + 1] != '"':
            end = text.find(",", position)
            end = len(text) if end < 0 else end
            fields.append(text[position:end])
        else:
            end = position + 1
            while text[end : end + 1] != '"' or text[end + 1 : end + 2] == '"':
                if end >= len(text):
                    raise InvalidInput(f"{text!r}: a quote is not closed", field=field)
                end += 2 if text[end] == '"' else 1
            fields.append(text[position + 1 : end].replace('""', '"'))
            end += 1
            if end < len(text) and text[end] != ",":
                raise InvalidInput(f"{text!r}: text after a closing quote", field=field)
        position = end + 1
    return fields
