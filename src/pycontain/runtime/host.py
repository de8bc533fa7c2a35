"""Where this program's containers live: the two roots and what hangs on them.

No mutable state but caches; any number of threads and programs use the same roots at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from pycontain import _native
from pycontain.isolation import cgroups, cgroups_systemd
from pycontain.runtime.launcher import Launcher
from pycontain.runtime.state import StateStore

if TYPE_CHECKING:
    from pycontain.isolation.cgroups import Layout

__all__ = ["Host", "default_data_root", "default_state_root"]


def default_state_root() -> str:
    """$PYCONTAIN_STATE, else /run/pycontain, else the user's runtime directory."""
    given = os.environ.get("PYCONTAIN_STATE")
    if given:
        return given
    if os.geteuid() == 0:
        return "/run/pycontain"
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/pycontain-{os.geteuid()}"
    return f"{base}/pycontain"


def default_data_root() -> str:
    """$PYCONTAIN_DATA, else /var/lib/pycontain, else the user's data directory."""
    given = os.environ.get("PYCONTAIN_DATA")
    if given:
        return given
    if os.geteuid() == 0:
        return "/var/lib/pycontain"
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return f"{base}/pycontain"


class Host:
    """The state root, the data root, and the ways to the monitor and to the cgroups.

    `remove_tree` deletes a container's hostile files; the image room knows how, and it is handed
    in because this room does not know that one.
    """

    def __init__(
        self,
        state_root: str | None = None,
        data_root: str | None = None,
        *,
        remove_tree: Callable[[str], None],
    ) -> None:
        self._remove_tree = remove_tree
        self.state_root = os.path.abspath(state_root or default_state_root())
        self.data_root = os.path.abspath(data_root or default_data_root())
        self.launcher = Launcher(self.state_root)

    @cached_property
    def states(self) -> StateStore:
        """The containers' state documents; the directory is made on first use."""
        return StateStore(self.state_root)

    def close(self) -> None:
        """Idle connections and directory descriptors are closed; the next use opens them anew."""
        self.launcher.close()
        states = self.__dict__.pop("states", None)
        if states is not None:
            states.close()

    @property
    def seccomp_cache(self) -> str:
        """Where compiled filters are kept."""
        return f"{self.data_root}/seccomp"

    def layout(self) -> Layout:
        """Where this host's cgroup controllers live."""
        return cgroups.detect()

    @property
    def containers_dir(self) -> str:
        """Where the containers' own directories on disk are."""
        return f"{self.data_root}/containers"

    def data_dir(self, container_id: str) -> str:
        """The container's own directory on disk: writable layer and log."""
        return f"{self.data_root}/containers/{container_id}"

    def remove_data(self, container_id: str) -> None:
        """Nothing of the container is left on disk; its files are hostile and may be deep."""
        path = self.data_dir(container_id)
        if os.path.lexists(path):
            self._remove_tree(path)

    def data_ids(self) -> list[str]:
        """The containers that have something on disk."""
        try:
            return sorted(os.listdir(f"{self.data_root}/containers"))
        except FileNotFoundError:
            return []

    def data_bytes(self) -> int:
        """Bytes in use on the data root's file system."""
        try:
            found = os.statvfs(self.data_root)
        except FileNotFoundError:
            return 0
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def cgroup_parent(self, *, start: bool = True) -> str:
        """The cgroup below which containers are made, relative to each hierarchy's root.

        One per state root: who prunes one root must not take the others' cgroups for leftovers.
        Where systemd owns the tree it is a scope that systemd delegates, kept by the monitor, which
        is started for it; with `start` False it is only named.
        """
        layout = self.layout()
        if layout.v2_root is None or not cgroups_systemd.booted_with_systemd():
            if self.state_root == "/run/pycontain":
                return cgroups_systemd.DEFAULT_PARENT
            import zlib

            return f"pycontain-{zlib.crc32(os.fsencode(self.state_root)):08x}"
        if not start:
            return f"system.slice/{cgroups_systemd.scope_name(self.state_root)}"
        worker = self.launcher.info().pid
        with open(f"/proc/{worker}/stat", "rb") as file:
            keeper = int(file.read().rpartition(b")")[2].split()[1])
        return cgroups_systemd.ensure_parent(layout, (worker, keeper), state_root=self.state_root)

    def open_program(self, name: str) -> int:
        """Return a sealed copy of one of our static programs; the caller closes the fd.

        A copy in memory, because what a container executes it can open through /proc/1/exe: the
        installed file must be out of reach (CVE-2019-5736).
        """
        program = _native.binary_path(name).read_bytes()
        return _native.memfd(name, program, seal=True, executable=True)
