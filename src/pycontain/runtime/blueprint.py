"""A container's definition: what is written to state.json and never changes while it exists.

Any program may later start it again, execute in it or show it, so this holds everything but what
the monitor knows (`live`, `exit`). JSON, unknown keys ignored, defaults left out.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from pycontain.errors import WrongState
from pycontain.oci import (
    Capabilities,
    Device,
    DeviceRule,
    IdMap,
    IoLimit,
    Mount,
    Namespace,
    Process,
    Resources,
    Rlimit,
    Spec,
    User,
)
from pycontain.values import defaults, frozen

__all__ = ["Blueprint", "decode", "encode"]


@frozen
class Blueprint:
    """Everything needed to start the container. Times in seconds since the epoch or in usec.

    `seccomp` is "default", "unconfined" or an OCI profile as JSON text. `survive`: the container
    outlives the program that started it; else it is killed when that program's connection closes.
    """

    id: str
    name: str
    image: str
    image_id: str
    created_at: float
    spec: Spec
    rootfs: Mount
    labels: tuple[tuple[str, str], ...] = ()
    seccomp: str = "default"
    survive: bool = False
    log: bool = False
    log_max_bytes: int = 0
    log_max_files: int = 0
    interactive: bool = False
    timeout_usec: int = 0
    stop_signal: int = 15
    stop_timeout_usec: int = 10_000_000
    cgroup: str = ""  # relative name of its cgroup, such as pycontain/<id>
    auto_remove: bool = False
    owner_pid: int = 0  # the program that made it; without `survive` it must live
    owner_ticks: int = 0


# Field -> the class of its items; everything else is a plain JSON value or a tuple of such.
_NESTED: dict[type, dict[str, type]] = {
    Blueprint: {"spec": Spec, "rootfs": Mount},
    Spec: {
        "process": Process, "mounts": Mount, "namespaces": Namespace, "uid_mappings": IdMap,
        "gid_mappings": IdMap, "devices": Device, "resources": Resources,
    },
    Process: {"user": User, "capabilities": Capabilities, "rlimits": Rlimit},
    Mount: {"uid_mappings": IdMap, "gid_mappings": IdMap},
    Resources: {"io_max": IoLimit, "devices": DeviceRule},
}  # fmt: skip


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, Any, type | None], ...]:
    nested = _NESTED.get(kind, {})
    return tuple((name, default, nested.get(name)) for name, default in defaults(kind))


def _plain(value: Any) -> Any:
    found: dict[str, Any] = {}
    for name, default, nested in _fields(type(value)):  # type: ignore[arg-type]
        item = getattr(value, name)
        if item is default or item == default:
            continue
        if nested is None:
            found[name] = item
        elif type(item) is tuple:
            found[name] = _plain_items(item)
        else:
            found[name] = _plain(item)
    return found


@functools.lru_cache(maxsize=128)
def _plain_items(items: tuple[Any, ...]) -> list[Any]:
    """Most containers have the same default mounts and devices: worked out once. Read-only."""
    return [_plain(item) for item in items]


def encode(blueprint: Blueprint) -> dict[str, Any]:
    """Return the blueprint as JSON values."""
    return _plain(blueprint)  # type: ignore[no-any-return]


def _typed(kind: type, found: Any) -> Any:
    if not isinstance(found, dict):
        raise TypeError(f"{kind.__name__} is no object")
    values = {}
    for name, _default, nested in _fields(kind):
        if name not in found:
            continue
        item = found[name]
        if nested is None:
            values[name] = _tuples(item) if isinstance(item, list) else item
        elif isinstance(item, list):
            values[name] = tuple(_typed(nested, each) for each in item)
        else:
            values[name] = _typed(nested, item)
    return kind(**values)


def _tuples(items: list[Any]) -> tuple[Any, ...]:
    return tuple(_tuples(item) if isinstance(item, list) else item for item in items)


def decode(found: dict[str, Any]) -> Blueprint:
    """Return the blueprint of a state document.

    Raises: WrongState: it is damaged, or written by a version that this one can't read.
    """
    try:
        return _typed(Blueprint, found)  # type: ignore[no-any-return]
    except (TypeError, KeyError) as error:
        raise WrongState(
            f"the container's state.json is damaged: {error}",
            status="unknown",
            hint="`pycontain rm --force` removes it",
        ) from None


def dumps(blueprint: Blueprint) -> bytes:
    """Return the blueprint as the bytes of state.json."""
    return json.dumps(encode(blueprint), separators=(",", ":")).encode("utf-8", "surrogateescape")
