"""Quotas, accounting, freezing and killing: one container's cgroup, on v2, v1 or both.

`Cgroup.create` makes the directories and writes the limits before there is a process; the process
is then born inside (CLONE_INTO_CGROUP with `dir_fd`; on v1 the child writes itself into
`join_fds`). So there is no moment at which it runs without limits, and a limit that this host
can't enforce is an error before anything starts.

`name` is a path relative to the mount point of every hierarchy, such as "pycontain/<id>". Its
parents are made on demand and never removed here, because others may be using them; see
`remove_parent`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import Self

from pycontain.errors import (
    AlreadyExists,
    InvalidInput,
    InvalidSpec,
    KernelError,
    NotFound,
    PycontainError,
    Unsupported,
    WrongState,
)
from pycontain.isolation import cgroups_fs as fs
from pycontain.isolation import cgroups_v1 as v1
from pycontain.isolation import cgroups_v2 as v2
from pycontain.isolation.cgroups_devices import attach_devices
from pycontain.isolation.cgroups_fs import children, remove_parent
from pycontain.isolation.cgroups_layout import Layout, Mode, detect
from pycontain.isolation.cgroups_limits import Setting, restoring, v2_settings
from pycontain.isolation.cgroups_placement import place, unenforceable
from pycontain.isolation.cgroups_stat import AccountingFiles, oom_facts, parse_sections
from pycontain.isolation.cgroups_stat import usage_from_text as usage_from_text
from pycontain.oci import Resources
from pycontain.usage import Usage

__all__ = [
    "Cgroup",
    "Layout",
    "Mode",
    "children",
    "detect",
    "oom_facts",
    "parse_sections",
    "remove_parent",
    "unenforceable",
    "usage_from_text",
]

REMOVE_TIMEOUT_SEC = 5.0


class Cgroup:
    """One container's (or exec's) cgroup, in all hierarchies that matter for it.

    Attributes:
        name: the path below each mount point.
        dir_fd: O_PATH fd of the v2 directory for CLONE_INTO_CGROUP, or -1. Owned; see `close`.
        join_fds: fds of v1 `cgroup.procs` files, open for writing. Owned; see `close`.
        kill_path: the cgroup.kill file, or None where killing is a matter of `kill`.
    """

    def __init__(self, layout: Layout, name: str, parent: Cgroup | None = None) -> None:
        """Names a cgroup; use `create`, `open` or `sub`."""
        self.layout = layout
        self.name = fs.checked_name(name)
        self.dir_fd = -1
        self.join_fds: tuple[int, ...] = ()
        self.kill_path: str | None = None
        self._parent = parent
        self._v2: str | None = None
        self._v1 = v1.V1Group(layout, self.name)
        self._files = AccountingFiles(self._v1.paths)

    @classmethod
    def create(
        cls,
        layout: Layout,
        name: str,
        resources: Resources | None = None,
        *,
        device_program: bytes | None = None,
    ) -> Cgroup:
        """A new cgroup with all limits of `resources` in force and no process; or nothing at all.

        Where no cgroup can be made (none mounted, or not ours to write) and no limit is asked for,
        the cgroup is an empty shell: no directory, no fds, no exit ops, an empty `stat`.

        Args:
            device_program: eBPF for `resources.devices` if already compiled.

        Raises:
            InvalidSpec: a limit is impossible; `field` names the option.
            Unsupported: this host can't enforce a limit.
            AlreadyExists: there is a cgroup of this name.
            KernelError: any other refusal.
        """
        cgroup = cls(layout, name)
        cgroup._create(resources or Resources(), device_program)
        return cgroup

    @classmethod
    def open(cls, layout: Layout, name: str) -> Cgroup:
        """An existing cgroup, perhaps made by another process, else NotFound."""
        cgroup = cls(layout, name)
        found = cgroup._v1.find()
        try:
            if layout.v2_root and os.path.isdir(f"{layout.v2_root}/{cgroup.name}"):
                cgroup._adopt_v2(f"{layout.v2_root}/{cgroup.name}")
                found = True
            cgroup._open_join_fds()
        except FileNotFoundError:  # being removed by somebody else
            found = False
        if not found:
            cgroup.close()
            raise NotFound(f"there is no cgroup {name}")
        return cgroup

    def sub(self, name: str, resources: Resources | None = None) -> Cgroup:
        """A new child cgroup, for an exec: its usage and its processes are its own.

        With limits on v2 the container's processes first move into a leaf `main`, once, because
        a cgroup that hands controllers down can't hold processes.
        """
        if "/" in name or name == v2.MAIN:
            raise InvalidInput(f"{name!r} can't name a cgroup in a container's", field="name")
        child = Cgroup(self.layout, f"{self.name}/{name}", self)
        child._create(resources or Resources(), None)
        return child

    @property
    def exists(self) -> bool:
        """It has at least one directory (see `create` for the shell that has none)."""
        return bool(self.paths)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every directory of this cgroup, the v2 one first."""
        return ((self._v2,) if self._v2 else ()) + tuple(self._v1.directories())

    # -- making ---------------------------------------------------------------------------------

    def _create(self, resources: Resources, device_program: bytes | None) -> None:
        asks = v2_settings(resources)
        on_v2, on_v1 = place(self.layout, resources, asks)
        try:
            self._make_v2(frozenset(s.controller for s in on_v2 if s.controller))
            if resources.devices:
                on_v1 += attach_devices(self.layout, self.dir_fd, resources.devices, device_program)
            needed = frozenset(s.controller for s in on_v1)
            sub = self._parent is not None
            self._v1.make(needed | v1.accounting(self.layout, sub=sub), needed)
            v2.write_settings(self.layout.v2_root or "", self.name, on_v2)
            for setting in on_v1:
                self._v1.write(setting)
            self._open_join_fds()
        except BaseException as error:
            self._undo()
            if isinstance(error, FileExistsError):
                raise AlreadyExists(f"there is a cgroup {self.name}") from error
            if isinstance(error, OSError) and not isinstance(error, PycontainError):
                call = f'create cgroup "{error.filename or self.name}"'
                raise KernelError(error.errno or errno.EIO, call) from error
            if asks or resources.devices or not isinstance(error, Unsupported):
                raise

    def _make_v2(self, needed: frozenset[str]) -> None:
        root = self.layout.v2_root
        if root is None:
            return
        path = f"{root}/{self.name}"
        try:
            if self._parent is not None and self._parent._v2 is not None:
                if needed:
                    v2.split(root, self._parent.name, needed)
                os.mkdir(path, 0o755)
            else:
                v2.make(root, self.name, needed)
        except OSError as error:
            if error.errno not in fs.DENIED:
                raise
            needs = f"permission to create {path}"
            raise Unsupported("cgroup", needs=needs, hint="delegate one: cgroup_parent") from error
        self._adopt_v2(path)

    def _adopt_v2(self, path: str) -> None:
        self._v2 = path
        self.dir_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        existing = v2.file_names(self.layout.v2_root or "", path)
        self._files.has_v2(path, existing)
        if "cgroup.kill" in existing:
            self.kill_path = f"{path}/cgroup.kill"

    def _open_join_fds(self) -> None:
        """A sub-cgroup's processes join the container's directory where it has none itself."""
        paths = dict(self._parent._v1.paths) if self._parent else {}
        paths.update(self._v1.paths)
        for directory in dict.fromkeys(paths.values()):
            fd = os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            self.join_fds += (fd,)

    def _undo(self) -> None:
        """Remove what was made: `paths` has only what this object made itself."""
        for path in self.paths:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        self.close()
        self._v2 = self.kill_path = None
        self._v1.paths.clear()
        self._files.has_v2("", frozenset())

    # -- life -----------------------------------------------------------------------------------

    def update(self, resources: Resources) -> None:
        """The limits given in `resources` are in force; all of them, or none has changed.

        -1 lifts a limit. Device rules are fixed at creation; `memory_oom_group` is not changed.

        Raises:
            InvalidSpec, Unsupported, KernelError: as `create`; the old limits hold.
        """
        if resources.devices:
            raise InvalidSpec("device rules can't change while it lives", field="devices")
        on_v2, on_v1 = place(self.layout, resources, v2_settings(resources, update=True))
        self._have_controllers(on_v2, on_v1)
        writes = [(True, setting) for setting in on_v2]
        writes += [(False, setting) for setting in self._v1.in_order(on_v1)]
        undo: list[tuple[bool, Setting]] = []
        try:
            for is_v2, setting in writes:
                with contextlib.suppress(OSError):  # no old value, no file: the write will tell
                    undo.append((is_v2, restoring(setting, self._read(is_v2, setting))))
                self._write(is_v2, setting)
        except BaseException:
            for is_v2, setting in reversed(undo):
                with contextlib.suppress(PycontainError):
                    self._write(is_v2, setting)
            raise

    def _read(self, is_v2: bool, setting: Setting) -> str:
        return fs.read(self._v2 or "", setting.file) if is_v2 else self._v1.read(setting)

    def _write(self, is_v2: bool, setting: Setting) -> None:
        if is_v2:
            v2.write_setting(self._v2 or "", setting)
        else:
            self._v1.write(setting)

    def _have_controllers(self, on_v2: list[Setting], on_v1: list[Setting]) -> None:
        """Controllers that no option asked for at creation are there now."""
        if not self.exists and (on_v2 or on_v1):
            raise Unsupported("update", needs="a container that was created with a cgroup")
        needed = frozenset(s.controller for s in on_v2 if s.controller)
        root = self.layout.v2_root or ""
        if needed and self._parent is not None:
            v2.split(root, self._parent.name, needed)
        elif needed:
            v2.prepare_parent(root, os.path.dirname(self.name), needed)
        absent = frozenset(s.controller for s in on_v1) - self._v1.paths.keys()
        if absent:
            self._v1.make(absent, absent)
            with self._standing_still():  # so that no fork escapes into the old directory
                self._v1.adopt(self.pids(), absent)

    def freeze(self, timeout_sec: float = v2.FREEZE_TIMEOUT_SEC) -> None:
        """All processes in it stand still.

        Raises:
            TimeoutExpired: one did not stop in time; none is frozen.
            Unsupported: there is neither a v2 tree nor a v1 freezer.
        """
        self._set_frozen(True, timeout_sec)

    def thaw(self, timeout_sec: float = v2.FREEZE_TIMEOUT_SEC) -> None:
        """All processes in it run again; raises as `freeze`."""
        self._set_frozen(False, timeout_sec)

    @property
    def frozen(self) -> bool:
        """Its processes stand still, or are about to."""
        return v2.is_frozen(self._v2) if self._v2 else v1.is_frozen(self._freezer("tell"))

    def _set_frozen(self, frozen: bool, timeout_sec: float) -> None:
        with self._told("freeze" if frozen else "thaw"):
            if self._v2:
                v2.set_frozen(self._v2, frozen, timeout_sec)
            else:
                v1.set_frozen(self._freezer("freeze"), frozen, timeout_sec)

    @contextlib.contextmanager
    def _standing_still(self) -> Iterator[None]:
        if self.frozen:
            yield
            return
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def _freezer(self, feature: str) -> str:
        path = self._v1.paths.get("freezer")
        if path is None:
            raise Unsupported(feature, needs="a cgroup v2 tree or the v1 freezer")
        return path

    def kill(self) -> None:
        """Every process in it has been sent SIGKILL, frozen ones too; nothing if it is gone."""
        with self._told("kill"), fs.unless_gone():
            if self._v2:
                v2.kill(self._v2)
            else:
                v1.kill(self._freezer("kill"), v2.FREEZE_TIMEOUT_SEC)

    def pids(self) -> list[int]:
        """Ids of all processes in it and below, in no order; [] if it is gone."""
        path = self._v2 or self._v1.paths.get("freezer") or self._v1.paths.get("pids")
        with self._told("read processes of"):
            return fs.pids(path) if path else []

    @contextlib.contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise WrongState(f"{verb} cgroup {self.name}: it is gone") from error
        except PycontainError:
            raise
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, f"{verb} cgroup {self.name}") from error

    # -- accounting -----------------------------------------------------------------------------

    def stat(self) -> Usage:
        """Usage now. Files stay open between calls, so the second call is the fast one."""
        return usage_from_text(self.sections())

    def sections(self) -> dict[str, str]:
        """The accounting files' texts by label; those that can't be read are left out."""
        return self._files.read()

    def exit_ops(self, *, kill: bool = True) -> list[tuple[int, bytes, bytes]]:
        """What the monitor does once the process has ended: read usage, kill the rest, remove.

        Args:
            kill: leftovers are killed, too (an exec's background processes).
        """
        from pycontain._native import C

        ops = [
            (int(C.PYC_EXIT_READ), os.fsencode(path), label.encode())
            for label, path in self._files.at_exit()
        ]
        if kill and self.kill_path:
            ops.append((int(C.PYC_EXIT_WRITE), os.fsencode(self.kill_path), b"1"))
        directories = list(self._v1.possible_paths()) if self._v1.paths else []
        if self._v2:
            # `main` may come to be by a later exec; removing what is not there costs little.
            directories += [f"{self._v2}/{v2.MAIN}", self._v2]
        ops += [(int(C.PYC_EXIT_RMDIR), os.fsencode(path), b"") for path in directories]
        return ops

    # -- the end --------------------------------------------------------------------------------

    def remove(self, timeout_sec: float = REMOVE_TIMEOUT_SEC) -> None:
        """No directory of it, or below it, exists in any hierarchy; no error if none did.

        Raises:
            KernelError: EBUSY, it still had processes after `timeout_sec`.
        """
        deadline = time.monotonic() + timeout_sec
        directories = self._v1.possible_paths()
        if self.layout.v2_root:
            directories.append(f"{self.layout.v2_root}/{self.name}")
        for directory in directories:
            fs.remove_tree(directory, deadline)
        self.close()

    def close(self) -> None:
        """All fds are closed; the cgroup itself stays. May be called again."""
        dir_fd, self.dir_fd = self.dir_fd, -1
        join_fds, self.join_fds = self.join_fds, ()
        for fd in (dir_fd, *join_fds):
            if fd >= 0:
                os.close(fd)
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
