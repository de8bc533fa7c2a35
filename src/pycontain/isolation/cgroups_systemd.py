"""Where containers' cgroups go: a directory of ours, or on a systemd host a scope of ours.

systemd owns the cgroup tree that it booted, and takes back what others make in it. It hands out a
subtree on request: a transient scope unit with Delegate=yes. The scope needs a process, which is
the monitor (it lives as long as containers do), in a leaf of its own because a cgroup that hands
controllers down holds no processes; the containers become its siblings:

    pycontain-<hash of the state root>.scope/   memory, pids, ... handed down
        monitor/                                our monitor
        <container id>/                         one per container

Source: systemd's CGROUP_DELEGATION.md ("scope units"), org.freedesktop.systemd1(5), systemd 252.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pycontain.errors import KernelError, Unsupported
from pycontain.isolation import cgroups_fs as fs
from pycontain.isolation import cgroups_v2 as v2
from pycontain.isolation.cgroups_layout import Layout

if TYPE_CHECKING:
    from jeepney.io.blocking import DBusConnection

DEFAULT_PARENT = "pycontain"
MONITOR = "monitor"
_SYSTEMD_RUNNING = "/run/systemd/system"  # sd_booted(3)
_BUS_TIMEOUT_SEC = 10.0
_MOVE_TIMEOUT_SEC = 5.0
_MOVE_POLL_SEC = 0.005
_HINT = "name a cgroup that is delegated to this user as cgroup_parent"


def ensure_parent(
    layout: Layout,
    monitor_pids: Sequence[int],
    *,
    state_root: str,
    cgroup_parent: str | None = None,
) -> str:
    """The parent to put before a container's name for `Cgroup.create`, ready to be used.

    Args:
        monitor_pids: the monitor's processes, which keep a systemd scope alive.
        state_root: tells scopes of several independent state roots apart.
        cgroup_parent: what the user chose instead; it is theirs to make sure of the delegation.

    Raises:
        Unsupported: systemd rules the tree and does not hand out a scope.
    """
    if cgroup_parent is not None:
        return fs.checked_name(cgroup_parent)
    if layout.v2_root is None or not booted_with_systemd():
        return DEFAULT_PARENT
    return systemd_scope(layout, monitor_pids, state_root=state_root)


def booted_with_systemd() -> bool:
    """systemd is this machine's init and so the owner of its cgroup tree."""
    return os.path.isdir(_SYSTEMD_RUNNING)


def scope_name(state_root: str) -> str:
    """The unit's name: the same for every program that uses this state root."""
    digest = hashlib.sha256(os.path.abspath(state_root).encode()).hexdigest()[:8]
    return f"pycontain-{digest}.scope"


def systemd_scope(
    layout: Layout, monitor_pids: Sequence[int], *, state_root: str, user: bool | None = None
) -> str:
    """The path of our delegated scope below the v2 mount, with the monitor in its leaf.

    An existing scope is used again; a monitor outside of it is moved in.

    Args:
        user: ask the user's own systemd; by default exactly if we are not root.

    Raises:
        Unsupported: no bus, or systemd refuses; the hint says what would help.
    """
    name = scope_name(state_root)
    inside = _path_of(monitor_pids[0]) if monitor_pids else None
    if inside is not None and inside.endswith(f"/{name}/{MONITOR}"):
        return os.path.dirname(inside).lstrip("/")  # without D-Bus: the common case
    user = os.geteuid() != 0 if user is None else user
    try:
        with contextlib.closing(_connect(user)) as bus:
            path = _scope(bus, name, monitor_pids, user)
            _settle_monitor(bus, layout, name, path, monitor_pids)
    except OSError as error:  # jeepney tells a missing bus and a closed one as these
        if isinstance(error, (KernelError, Unsupported)):
            raise
        raise _no_scope(f"the bus does not answer: {error}") from error
    return path.strip("/")


def _no_scope(why: str) -> Unsupported:
    needs = f"a delegated scope from systemd ({why})"
    return Unsupported("cgroups", needs=needs, hint=_HINT)


def _connect(user: bool) -> DBusConnection:
    from jeepney.io.blocking import open_dbus_connection

    address = "SYSTEM"
    if user:
        address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")
        runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
        if not address and runtime_dir:  # sd_bus_default_user(3) looks there too
            address = f"unix:path={runtime_dir}/bus"
        if not address:
            raise _no_scope("no user bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR")
    try:
        return open_dbus_connection(bus=address)
    except (ValueError, RuntimeError) as error:  # a strange address, or we are not let in
        raise _no_scope(f"D-Bus: {error}") from error


def _scope(bus: DBusConnection, name: str, pids: Sequence[int], user: bool) -> str:
    """The scope's cgroup, absolute below the v2 root; started if there is none."""
    path = _control_group(bus, name)
    if path:
        return path
    properties = [
        ("Description", ("s", "Containers of pycontain")),
        ("PIDs", ("au", list(pids))),
        ("Delegate", ("b", True)),
        ("Slice", ("s", "app.slice" if user else "system.slice")),
        ("CollectMode", ("s", "inactive-or-failed")),  # else a failed one blocks the name
    ]
    error = _call_error(
        bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "fail", properties, [])
    )
    if error is not None and error[0] != "org.freedesktop.systemd1.UnitExists":
        raise _no_scope(f"StartTransientUnit: {error[1]}")
    # The reply is the job's, not the unit's: wait until the cgroup is there. Polled, because the
    # JobRemoved signal may be sent before anybody could have subscribed to it.
    deadline = time.monotonic() + _MOVE_TIMEOUT_SEC
    while time.monotonic() < deadline:
        path = _control_group(bus, name)
        if path:
            return path
        time.sleep(_MOVE_POLL_SEC)
    raise _no_scope(f"{name} did not start within {_MOVE_TIMEOUT_SEC} s")


def _control_group(bus: DBusConnection, name: str) -> str:
    """The running scope's ControlGroup property, or "" while there is none."""
    from jeepney import DBusAddress, Properties

    reply = _call(bus, "GetUnit", "s", (name,))
    if isinstance(reply, _BusError):
        return ""
    unit = DBusAddress(reply[0], "org.freedesktop.systemd1", "org.freedesktop.systemd1.Scope")
    answer = _send(bus, Properties(unit).get("ControlGroup"))
    return "" if isinstance(answer, _BusError) else str(answer[0][1])


def _settle_monitor(
    bus: DBusConnection, layout: Layout, name: str, path: str, pids: Sequence[int]
) -> None:
    """The monitor is in the scope's leaf, so that the scope may hand controllers down."""
    scope = f"{layout.v2_root}/{path.strip('/')}"
    leaf = f"{scope}/{MONITOR}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(leaf, 0o755)
        for pid in pids:
            if not (_path_of(pid) or "").startswith(path + "/"):
                _move(bus, name, leaf, pid)
        v2.prepare_parent(layout.v2_root or "", path.strip("/"), frozenset())
    except OSError as error:
        if isinstance(error, KernelError):
            raise
        raise _no_scope(f"{error.filename or leaf}: {error.strerror}") from error


def _move(bus: DBusConnection, name: str, leaf: str, pid: int) -> None:
    """Inside the scope we may move it ourselves; into it, an unprivileged user must ask."""
    try:
        fs.write(leaf, "cgroup.procs", str(pid))
    except PermissionError:
        error = _call_error(bus, "AttachProcessesToUnit", "ssau", (name, f"/{MONITOR}", [pid]))
        if error is not None:
            raise _no_scope(f"AttachProcessesToUnit: {error[1]}") from None


def _path_of(pid: int) -> str | None:
    """The process's v2 cgroup, as the initial cgroup namespace names it."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            return next((line[3:].strip() for line in file if line.startswith("0::")), None)
    except OSError:
        return None


class _BusError(tuple[str, str]):
    """(D-Bus error name, text)."""

    __slots__ = ()


def _call_error(
    bus: DBusConnection, method: str, signature: str, body: tuple[Any, ...]
) -> _BusError | None:
    reply = _call(bus, method, signature, body)
    return reply if isinstance(reply, _BusError) else None


def _call(
    bus: DBusConnection, method: str, signature: str, body: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Call org.freedesktop.systemd1.Manager; the reply's values, or a _BusError."""
    from jeepney import DBusAddress, new_method_call

    manager = DBusAddress(
        "/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager"
    )
    return _send(bus, new_method_call(manager, method, signature, body))


def _send(bus: DBusConnection, message: Any) -> tuple[Any, ...]:
    from jeepney import HeaderFields, MessageType

    reply = bus.send_and_get_reply(message, timeout=_BUS_TIMEOUT_SEC)
    if reply.header.message_type is MessageType.error:
        error_name = str(reply.header.fields.get(HeaderFields.error_name, "?"))
        text = str(reply.body[0]) if reply.body else error_name
        return _BusError((error_name, text))
    return tuple(reply.body)
