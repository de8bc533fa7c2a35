"""Capability names and masks, and which of them a container gets.

A set of capabilities is an `int` mask of `1 << CAP_*` everywhere; names exist only at the edges.
Source: capabilities(7), include/uapi/linux/capability.h.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from pycontain.errors import InvalidSpec, Unsupported
from pycontain.oci import Capabilities

_IN_BIT_ORDER = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP "
    "LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER "
    "SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
    "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
    "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF "
    "CHECKPOINT_RESTORE"
)
NAMES: tuple[str, ...] = tuple(f"CAP_{name}" for name in _IN_BIT_ORDER.split())
BITS: dict[str, int] = {name: bit for bit, name in enumerate(NAMES)}
ALL: int = (1 << len(NAMES)) - 1


def parse(names: Iterable[str], *, field: str = "capabilities") -> int:
    """Return the mask of `names`: "NET_RAW", "cap_net_raw" or "ALL".

    Raises:
        InvalidSpec: a name is not a capability; the error's field is `field`.
    """
    mask = 0
    for name in names:
        upper = name.upper()
        if upper in ("ALL", "CAP_ALL"):
            mask |= ALL
            continue
        bit = BITS.get(upper if upper.startswith("CAP_") else f"CAP_{upper}")
        if bit is None:
            raise InvalidSpec(
                f"{name!r} is not a capability", field=field, hint="names are as in capabilities(7)"
            )
        mask |= 1 << bit
    return mask


def names(mask: int) -> tuple[str, ...]:
    """Return the names in `mask` ("CAP_CHOWN"), by bit; unnamed bits come as "CAP_<number>"."""
    return tuple(
        NAMES[bit] if bit < len(NAMES) else f"CAP_{bit}"
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    )


# Podman's eleven. Docker's other three stay out: MKNOD (device nodes come from us), NET_RAW
# (spoofing on a shared bridge; ping works through ping_group_range), AUDIT_WRITE (the host's log).
_DEFAULT = (
    "CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID "
    "SYS_CHROOT"
)
DEFAULT: int = parse(_DEFAULT.split())


@cache
def last_cap() -> int:
    """Return the highest capability that the running kernel knows; ours if it doesn't say."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return len(NAMES) - 1


@cache
def _own_bounding() -> int:
    try:
        with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("CapBnd:"):
                    return int(line.split()[1], 16)
    except (OSError, ValueError):
        pass
    return ALL


def available(*, new_user_namespace: bool = False) -> int:
    """Return the capabilities that a child of this process can have.

    Those that the kernel knows, less those missing in our bounding set. A new user namespace
    starts with a full bounding set (user_namespaces(7)). Read once per process.
    """
    known = (1 << (last_cap() + 1)) - 1
    return known if new_user_namespace else known & _own_bounding()


def resolve(
    default: int,
    add: Iterable[str] = (),
    drop: Iterable[str] = (),
    *,
    host: int | None = None,
) -> int:
    """Return the container's bounding mask from a default and what to add to and drop from it.

    Docker's rules: "ALL" in `add` is everything but `drop`; else "ALL" in `drop` is just `add`;
    else the default less `drop`, plus `add`. What the host lacks is left out unless it was named.

    Args:
        host: what the host can give, `available()` if not given.

    Raises:
        InvalidSpec: an unknown name in cap_add or cap_drop.
        Unsupported: a capability named in `add` that the host can't give.
    """
    add, drop = tuple(add), tuple(drop)
    add_all, named = _split(add, "cap_add")
    drop_all, dropped = _split(drop, "cap_drop")
    host = available() if host is None else host
    missing = named & ~host
    if missing:
        raise Unsupported(
            f"--cap-add {','.join(names(missing))}",
            needs="a kernel and a bounding set (CapBnd of this process) that have it",
        )
    if add_all:
        return (ALL & ~dropped | named) & host
    if drop_all:
        return named
    return (default & ~dropped | named) & host


def _split(given: tuple[str, ...], field: str) -> tuple[bool, int]:
    """Return whether `given` has "ALL", and the mask of the others."""
    single = [name for name in given if name.upper() not in ("ALL", "CAP_ALL")]
    return len(single) < len(given), parse(single, field=field)


def process_sets(bounding: int, *, uid: int, ambient: int = 0) -> Capabilities:
    """Return the five sets of a process that may have `bounding`.

    Root has them all in effect. Another user has just `ambient`, and could gain the rest only
    through setuid or file capabilities (not at all under no_new_privs). Inheritable holds nothing
    that ambient does not ask for (CVE-2022-29162).
    """
    ambient &= bounding
    held = bounding if uid == 0 else ambient
    return Capabilities(
        bounding=bounding, effective=held, permitted=held, inheritable=ambient, ambient=ambient
    )
