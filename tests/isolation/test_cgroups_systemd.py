"""Asking systemd for a scope: what is said on the bus, and what follows from each answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, Message, MessageType
from jeepney.low_level import Header, MessageFlag

from pycontain.errors import InvalidInput, Unsupported
from pycontain.isolation import cgroups_systemd as systemd
from pycontain.isolation import cgroups_v2
from pycontain.isolation.cgroups_layout import Layout, Mode

SCOPE = systemd.scope_name("/run/pycontain")
CGROUP = f"/system.slice/{SCOPE}"


def reply(*body: Any, error: str | None = None) -> Message:
    """A message as jeepney hands it out."""
    kind = MessageType.error if error else MessageType.method_return
    fields = {HeaderFields.error_name: error} if error else {}
    header = Header(1, kind, MessageFlag(0), 1, 0, 1, fields)  # type: ignore[arg-type]
    return Message(header, body)


class ScriptedBus:
    """A systemd that starts scopes at once; it checks that every call can be serialised."""

    def __init__(self, root: Path, *, error: tuple[str, str] | None = None) -> None:
        self.root = root
        self.error = error
        self.started = False
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.closed = False

    def send_and_get_reply(self, message: Message, *, timeout: float) -> Message:
        message.serialise(serial=1)  # raises if the body does not fit the signature
        method = str(message.header.fields[HeaderFields.member])
        self.calls.append((method, message.body))
        if method == "GetUnit":
            if not self.started:
                return reply("not loaded", error="org.freedesktop.systemd1.NoSuchUnit")
            return reply("/org/freedesktop/systemd1/unit/x")
        if method == "Get":
            return reply(("s", CGROUP))
        if method == "StartTransientUnit":
            if self.error:
                return reply(self.error[1], error=self.error[0])
            self.started = True
            (self.root / CGROUP[1:]).mkdir(parents=True, exist_ok=True)
            return reply("/org/freedesktop/systemd1/job/1")
        return reply()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A v2 tree whose scope is delegated two controllers."""
    scope = tmp_path / CGROUP[1:]
    for directory in (tmp_path, scope, scope / "monitor"):
        directory.mkdir(parents=True, exist_ok=True)
        for file in ("cgroup.controllers", "cgroup.subtree_control"):
            (directory / file).write_text("memory pids" if file == "cgroup.controllers" else "")
        (directory / "cgroup.procs").write_text("")
    return Layout(Mode.UNIFIED, str(tmp_path), frozenset(("memory", "pids")))


@pytest.fixture
def bus(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> ScriptedBus:
    """What `_connect` gives; nothing of the machine's own systemd is asked."""
    scripted = ScriptedBus(Path(layout.v2_root or ""))
    monkeypatch.setattr(systemd, "_connect", lambda user: scripted)
    monkeypatch.setattr(systemd, "booted_with_systemd", lambda: True)
    return scripted


def test_scope_is_started_with_the_monitor_and_delegated(bus: ScriptedBus, layout: Layout) -> None:
    """The unit is asked for with our pid and Delegate, and the monitor moves into its leaf."""
    pid = os.getpid()
    parent = systemd.ensure_parent(layout, [pid], state_root="/run/pycontain")
    assert parent == CGROUP[1:]
    name, mode, properties, aux = next(b for m, b in bus.calls if m == "StartTransientUnit")
    assert (name, mode, aux) == (SCOPE, "fail", [])
    assert dict(properties)["PIDs"] == ("au", [pid])
    assert dict(properties)["Delegate"] == ("b", True)
    scope = Path(layout.v2_root or "") / parent
    assert (scope / "monitor/cgroup.procs").read_text() == str(pid)
    assert (scope / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert bus.closed


def test_nothing_above_the_scope_is_written(bus: ScriptedBus, layout: Layout) -> None:
    """systemd's own cgroups, up to the root, keep their controllers."""
    systemd.ensure_parent(layout, [os.getpid()], state_root="/run/pycontain")
    assert (Path(layout.v2_root or "") / "cgroup.subtree_control").read_text() == ""


def test_existing_scope_is_used_again(bus: ScriptedBus, layout: Layout) -> None:
    """A second program finds the unit running and starts none."""
    bus.started = True
    parent = systemd.ensure_parent(layout, [os.getpid()], state_root="/run/pycontain")
    assert parent == CGROUP[1:]
    assert "StartTransientUnit" not in [method for method, _ in bus.calls]


def test_lost_race_is_no_error(bus: ScriptedBus, layout: Layout) -> None:
    """If another program started the unit between our two questions, it is used."""
    original = bus.send_and_get_reply

    def racing(message: Message, *, timeout: float) -> Message:
        if message.header.fields[HeaderFields.member] == "StartTransientUnit":
            bus.started = True
            return reply("exists", error="org.freedesktop.systemd1.UnitExists")
        return original(message, timeout=timeout)

    bus.send_and_get_reply = racing  # type: ignore[method-assign]
    assert systemd.ensure_parent(layout, [1], state_root="/run/pycontain") == CGROUP[1:]


def test_refusal_names_what_helps(bus: ScriptedBus, layout: Layout) -> None:
    """systemd's no is Unsupported with its own words and a hint."""
    bus.error = ("org.freedesktop.DBus.Error.AccessDenied", "Permission denied")
    with pytest.raises(Unsupported, match="Permission denied") as caught:
        systemd.ensure_parent(layout, [1], state_root="/run/pycontain")
    assert "cgroup_parent" in (caught.value.hint or "")
    assert bus.closed


def test_no_bus_is_unsupported(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with systemd but without a reachable bus says so."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with pytest.raises(Unsupported, match="bus"):
        systemd.systemd_scope(layout, [1], state_root="/x", user=False)
    with pytest.raises(Unsupported, match="no user bus"):
        systemd.systemd_scope(layout, [1], state_root="/x", user=True)


def test_choice_of_the_user_wins(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A given parent is taken as it is, without a bus; one that leaves the tree is refused."""
    monkeypatch.setattr(systemd, "booted_with_systemd", lambda: True)
    given = systemd.ensure_parent(layout, [1], state_root="/x", cgroup_parent="/my/parent/")
    assert given == "my/parent"
    with pytest.raises(InvalidInput, match="cgroup_parent"):
        systemd.ensure_parent(layout, [1], state_root="/x", cgroup_parent="../up")


def test_without_systemd_the_parent_is_ours(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other inits do not own the tree: a directory of ours at its root."""
    monkeypatch.setattr(systemd, "booted_with_systemd", lambda: False)
    assert systemd.ensure_parent(layout, [1], state_root="/x") == "pycontain"


def test_scope_name_tells_state_roots_apart() -> None:
    """One name per state root, however its path is written."""
    assert systemd.scope_name("/run/pycontain/") == SCOPE
    assert systemd.scope_name("/run/other") != SCOPE
    assert len(SCOPE) == len("pycontain-12345678.scope")


def test_controllers_are_not_taken_from_a_unit_that_lacks_them(
    bus: ScriptedBus, layout: Layout
) -> None:
    """What systemd did not delegate is Unsupported, and nothing above is changed to get it."""
    root = layout.v2_root or ""
    (Path(root) / CGROUP[1:] / "cgroup.controllers").write_text("memory")
    with pytest.raises(Unsupported, match="pids"):
        cgroups_v2.prepare_parent(root, CGROUP[1:], frozenset(("pids",)))
    assert (Path(root) / "cgroup.subtree_control").read_text() == ""
