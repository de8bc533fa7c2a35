"""Seccomp profiles in JSON, as OCI's runtime-spec and as Docker write them.

Docker's format adds `archMap`, and `includes` and `excludes` per rule. Keys that we do not know are
ignored, as the runtime-spec asks; values that we do not know are errors that say where they are.
Source: OCI runtime-spec config-linux.md#seccomp; moby/profiles seccomp.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from pycontain.errors import InvalidSpec
from pycontain.isolation import seccomp_profile as actions
from pycontain.isolation.capabilities import BITS
from pycontain.isolation.seccomp_library import OPERATORS
from pycontain.isolation.seccomp_profile import Arg, Profile, Rule

_MAX_FILE_BYTES = 1 << 20
_ACTIONS = {
    "SCMP_ACT_ALLOW": actions.ALLOW,
    "SCMP_ACT_ERRNO": actions.ERRNO,
    "SCMP_ACT_KILL": actions.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": actions.KILL_PROCESS,
    "SCMP_ACT_KILL_THREAD": actions.KILL_THREAD,
    "SCMP_ACT_LOG": actions.LOG,
    "SCMP_ACT_TRACE": actions.TRACE,
    "SCMP_ACT_TRAP": actions.TRAP,
}
_FLAGS = {  # TSYNC says nothing about a process with one thread
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 0,
}
_NATIVE = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_U64 = (1 << 64) - 1


def load(source: str | os.PathLike[str] | dict[str, Any]) -> Profile:
    """Return the profile in a JSON file or in a dictionary.

    Raises:
        InvalidSpec: it is not a profile; the field is like `seccomp.syscalls[3].action`.
    """
    data = source if isinstance(source, dict) else _read(source)
    where = "seccomp"
    default = _action(data, where, "defaultAction", ("defaultErrno", "defaultErrnoRet"))
    rules = [
        _rule(entry, f"{where}.syscalls[{index}]")
        for index, entry in enumerate(_list(data, "syscalls", where))
    ]
    flags = 0
    for index, flag in enumerate(_list(data, "flags", where)):
        if flag not in _FLAGS:
            raise InvalidSpec(f"unknown flag {flag!r}", field=f"{where}.flags[{index}]")
        flags |= _FLAGS[flag]
    return Profile(
        default_action=default,
        rules=tuple(rules),
        architectures=_architectures(data, where),
        flags=flags,
    )


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
        if len(text) > _MAX_FILE_BYTES:
            raise InvalidSpec(f"{os.fspath(path)} is larger than 1 MiB", field="seccomp")
        data = json.loads(text)
    except OSError as error:
        raise InvalidSpec(f"{os.fspath(path)}: {error.strerror}", field="seccomp") from error
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(f"{os.fspath(path)} is not JSON: {error}", field="seccomp") from error
    if not isinstance(data, dict):
        raise InvalidSpec(f"{os.fspath(path)} holds no JSON object", field="seccomp")
    return data


def _rule(entry: Any, where: str) -> Rule:
    _object(entry, where)
    names = _strings(entry, "names", where)
    if isinstance(entry.get("name"), str) and not names:  # Docker's old form
        names = (entry["name"],)
    if not names:
        raise InvalidSpec("names no system call", field=f"{where}.names")
    includes = _object(entry.get("includes") or {}, f"{where}.includes")
    excludes = _object(entry.get("excludes") or {}, f"{where}.excludes")
    args = [
        _arg(arg, f"{where}.args[{index}]") for index, arg in enumerate(_list(entry, "args", where))
    ]
    return Rule(
        names=names,
        action=_action(entry, where, "action", ("errno", "errnoRet")),
        args=tuple(args),
        caps=_caps(includes, f"{where}.includes"),
        not_caps=_caps(excludes, f"{where}.excludes"),
        arches=_strings(includes, "arches", f"{where}.includes"),
        not_arches=_strings(excludes, "arches", f"{where}.excludes"),
        min_kernel=_kernel(includes, f"{where}.includes"),
        not_min_kernel=_kernel(excludes, f"{where}.excludes"),
    )


def _action(data: dict[str, Any], where: str, key: str, numbers: tuple[str, str]) -> int:
    """Return an action with its errno, which `numbers` gives by name or else by value."""
    name, field = data.get(key), f"{where}.{key}"
    if name is None:
        raise InvalidSpec("is missing", field=field)
    if name == "SCMP_ACT_NOTIFY":
        raise InvalidSpec("SCMP_ACT_NOTIFY: there is no agent here to notify", field=field)
    if not isinstance(name, str) or name not in _ACTIONS:
        raise InvalidSpec(f"unknown action {name!r}", field=field)
    action = _ACTIONS[name]
    if action not in (actions.ERRNO, actions.TRACE):
        return action
    by_name, by_value = (data.get(number) for number in numbers)
    if by_name:
        value = getattr(errno, by_name, None) if isinstance(by_name, str) else None
        if not isinstance(value, int):
            raise InvalidSpec(f"unknown errno {by_name!r}", field=f"{where}.{numbers[0]}")
        return action | value
    value = errno.EPERM if by_value is None else by_value
    # The kernel caps an errno at 4095 and hands a tracer all 16 bits.
    most = 4095 if action == actions.ERRNO else 0xFFFF
    return action | _integer(value, f"{where}.{numbers[1]}", most)


def _arg(entry: Any, where: str) -> Arg:
    _object(entry, where)
    op = entry.get("op")
    if not isinstance(op, str) or op not in OPERATORS:
        raise InvalidSpec(f"unknown operator {op!r}", field=f"{where}.op")
    return Arg(
        index=_integer(entry.get("index"), f"{where}.index", 5),
        op=op,
        value=_integer(entry.get("value"), f"{where}.value", _U64),
        value_two=_integer(entry.get("valueTwo") or 0, f"{where}.valueTwo", _U64),
    )


def _caps(condition: dict[str, Any], where: str) -> int:
    mask = 0
    for index, name in enumerate(_strings(condition, "caps", where)):
        if name not in BITS:
            raise InvalidSpec(f"{name!r} is not a capability", field=f"{where}.caps[{index}]")
        mask |= 1 << BITS[name]
    return mask


def _kernel(condition: dict[str, Any], where: str) -> tuple[int, int]:
    version = condition.get("minKernel")
    if not version:
        return (0, 0)
    parts = version.split(".") if isinstance(version, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidSpec(f"{version!r} is not like 4.8", field=f"{where}.minKernel")
    return int(parts[0]), int(parts[1])


def _architectures(data: dict[str, Any], where: str) -> tuple[str, ...]:
    """Return what runs besides the native calls: listed, or mapped from the machine (Docker)."""
    listed, mapped = _strings(data, "architectures", where), _list(data, "archMap", where)
    if listed and mapped:
        raise InvalidSpec("not together with architectures", field=f"{where}.archMap")
    for index, name in enumerate(listed):
        if not name.startswith("SCMP_ARCH_"):
            raise InvalidSpec(f"unknown {name!r}", field=f"{where}.architectures[{index}]")
    for index, entry in enumerate(mapped):
        field = f"{where}.archMap[{index}]"
        subordinate = _strings(_object(entry, field), "subArchitectures", field)
        if entry.get("architecture") == _NATIVE.get(os.uname().machine):
            listed = subordinate
    return listed


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidSpec("is not an object", field=where)
    return value


def _list(data: dict[str, Any], key: str, where: str) -> list[Any]:
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidSpec("is not a list", field=f"{where}.{key}")
    return value


def _strings(data: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = _list(data, key, where)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidSpec("is not a string", field=f"{where}.{key}[{index}]")
    return tuple(values)


def _integer(value: Any, where: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidSpec(f"{value!r} is not in 0..{most}", field=where)
    return value
