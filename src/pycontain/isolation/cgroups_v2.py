"""The cgroup v2 tree: parents that hand out controllers, splitting, freezing, killing.

v2's rule shapes this module: a cgroup that gives controllers to its children may hold no
processes itself ("no internal processes"), the root of the tree excepted.
Source: Linux Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Iterable, Sequence

from pycontain.errors import KernelError, TimeoutExpired, Unsupported
from pycontain.isolation import cgroups_fs as fs
from pycontain.isolation.cgroups_fs import is_unit
from pycontain.isolation.cgroups_limits import Setting, blkio_from_io_weight, parse_cpuset

# Handed to every container for accounting and OOM facts, where the host has them on v2. The rest
# (cpuset, hugetlb) only when asked for: each makes mkdir slower.
ACCOUNTING = frozenset(("cpu", "memory", "pids", "io"))
MAIN = "main"  # the leaf that a split cgroup's processes live in
FREEZE_TIMEOUT_SEC = 10.0
_SPLIT_ATTEMPTS = 16

_prepared: dict[str, frozenset[str]] = {}  # parent directory -> controllers that its children have
_files: dict[tuple[str, frozenset[str]], frozenset[str]] = {}  # (tree, controllers) -> file names


def make(root: str, name: str, needed: frozenset[str]) -> str:
    """A new cgroup `name` below `root`, whose parents hand it the `needed` controllers.

    Raises:
        FileExistsError: it exists.
        Unsupported: a parent can't get a controller, or may not be written.
    """
    path = f"{root}/{name}"
    parent = os.path.dirname(path)
    prepared = _prepared.get(parent)
    if prepared is None or not needed <= prepared:
        prepare_parent(root, os.path.dirname(name), needed)
    try:
        os.mkdir(path, 0o755)
    except FileNotFoundError:  # another process pruned the parent since we prepared it
        prepare_parent(root, os.path.dirname(name), needed)
        os.mkdir(path, 0o755)
    return path


def prepare_parent(root: str, parent: str, needed: frozenset[str]) -> None:
    """Every cgroup down to `parent` exists and hands down the `needed` controllers.

    Directories above a systemd unit are systemd's: they are neither made nor changed.
    """
    parts = parent.split("/") if parent else []
    owned = _systemd_depth(root, parts)
    directory = "/".join([root, *parts[:owned]])
    _hand_down(directory, needed)
    for part in parts[owned:]:
        directory = f"{directory}/{part}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o755)
        _hand_down(directory, needed)
    _prepared[directory] = _handed_down(directory)


def _systemd_depth(root: str, parts: list[str]) -> int:
    """How many of `parts` lead to the last systemd unit among them that exists."""
    for depth in range(len(parts), 0, -1):
        if is_unit(parts[depth - 1]) and os.path.isdir("/".join([root, *parts[:depth]])):
            return depth
    return 0


def _handed_down(directory: str) -> frozenset[str]:
    return frozenset(fs.read(directory, "cgroup.subtree_control").split())


def _hand_down(directory: str, needed: frozenset[str]) -> None:
    """`directory` gives its children the needed controllers and, if it can, those that account."""
    available = frozenset(fs.read(directory, "cgroup.controllers").split())
    missing = needed - available
    if missing:
        names = ", ".join(sorted(missing))
        raise Unsupported(f"cgroup controller {names}", needs=f"it delegated to {directory}")
    enabled = _handed_down(directory)
    lacking = ((ACCOUNTING & available) | needed) - enabled
    if not lacking:
        return
    try:
        _enable(directory, lacking)
    except OSError as error:
        _enable_singly(directory, lacking - needed)
        try:
            _enable(directory, needed - enabled)
        except OSError:
            raise _not_handed_down(error, directory, needed - enabled) from error


def _enable(directory: str, controllers: Iterable[str]) -> None:
    words = " ".join(f"+{name}" for name in sorted(controllers))
    if words:
        fs.write(directory, "cgroup.subtree_control", words)


def _enable_singly(directory: str, controllers: Iterable[str]) -> None:
    """Accounting is worth having, but no reason to fail."""
    for name in controllers:
        with contextlib.suppress(OSError):
            _enable(directory, (name,))


def _not_handed_down(error: OSError, directory: str, needed: frozenset[str]) -> Exception:
    names = ", ".join(sorted(needed))
    hint = "name a delegated cgroup as cgroup_parent"
    if error.errno == errno.EBUSY:
        hint = f"{directory} itself holds processes: move them into a child of it first"
    if error.errno in fs.DENIED or error.errno == errno.EBUSY:
        needs = f"{directory}/cgroup.subtree_control to accept it ({error.strerror})"
        return Unsupported(f"cgroup controller {names}", needs=needs, hint=hint)
    return KernelError(
        error.errno or errno.EIO, f'write("{directory}/cgroup.subtree_control", "{names}")'
    )


def file_names(root: str, path: str) -> frozenset[str]:
    """Which files the cgroup `path` has; listed once per set of controllers and process."""
    parent = os.path.dirname(path)
    controllers = _prepared.get(parent)
    if controllers is None:
        controllers = _handed_down(parent)
    key = (root, controllers)
    names = _files.get(key)
    if names is None:
        names = _files[key] = frozenset(os.listdir(path))
    return names


def write_settings(root: str, name: str, settings: Sequence[Setting]) -> None:
    """All settings of a new cgroup are in force.

    Raises:
        InvalidSpec, Unsupported, KernelError: naming the option.
    """
    path = f"{root}/{name}"
    try:
        for setting in settings:
            write_setting(path, setting)
    except Unsupported:
        # A file is missing: another process pruned the parent and made it again with fewer
        # controllers than we remember. Once more, from the start.
        if os.path.dirname(path) not in _prepared:
            raise
        needed = frozenset(setting.controller for setting in settings if setting.controller)
        prepare_parent(root, os.path.dirname(name), needed)
        for setting in settings:
            write_setting(path, setting)


def write_setting(path: str, setting: Setting) -> None:
    """The setting is in force.

    Raises:
        InvalidSpec, Unsupported, KernelError: naming the option.
    """
    if setting.file in ("cpuset.cpus", "cpuset.mems"):
        _check_cpuset(path, setting)
    try:
        fs.write(path, setting.file, setting.text)
    except OSError as error:
        if setting.file == "memory.swap.max" and error.errno == errno.ENOENT and not host_swaps():
            return  # without swap on the host, any limit of it holds
        if setting.file != "io.weight" or error.errno != errno.ENOENT:
            raise fs.refusal(
                error, f"{path}/{setting.file}", setting.text, setting.field
            ) from error
        _write_bfq_weight(path, setting, required=True)
    else:
        if setting.file == "io.weight":
            _write_bfq_weight(path, setting, required=False)


def _write_bfq_weight(path: str, setting: Setting, *, required: bool) -> None:
    """BFQ does not look at io.weight but has its own file; which one works depends on the disk."""
    weight = str(blkio_from_io_weight(int(setting.text.split()[-1])))
    try:
        fs.write(path, "io.bfq.weight", weight)
    except OSError as error:
        if required:
            raise fs.refusal(error, f"{path}/io.bfq.weight", weight, setting.field) from error


def _check_cpuset(path: str, setting: Setting) -> None:
    """v2 accepts CPUs that the parent lacks and then quietly uses others: refuse them."""
    parent = os.path.dirname(path)
    try:
        effective = fs.read(parent, f"{setting.file}.effective").strip()
    except OSError:
        return  # the write will tell
    usable = parse_cpuset(effective, setting.field) if effective else frozenset()
    beyond = parse_cpuset(setting.text, setting.field) - usable
    if beyond:
        error = OSError(errno.ERANGE, f"only {effective} are usable here")
        raise fs.refusal(error, f"{path}/{setting.file}", setting.text, setting.field)


def host_swaps() -> bool:
    """The host has swap space in use."""
    try:
        with open("/proc/swaps") as file:
            return len(file.readlines()) > 1
    except OSError:
        return True


def split(root: str, name: str, needed: frozenset[str]) -> None:
    """Children of the container's cgroup may have limits: its processes live in `main` now.

    Frozen meanwhile, so that no fork slips in between moving and enabling. The limits of the
    container stay where they were, one level above `main`.
    """
    path = f"{root}/{name}"
    if needed <= _handed_down(path):
        return
    prepare_parent(root, os.path.dirname(name), needed)
    was_frozen = is_frozen(path)
    if not was_frozen:
        set_frozen(path, True)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{path}/{MAIN}", 0o755)
        for attempt in range(_SPLIT_ATTEMPTS):
            _move_all(path, f"{path}/{MAIN}")
            try:
                _hand_down(path, needed)
                return
            except Unsupported:  # EBUSY: somebody was born into it since
                if attempt == _SPLIT_ATTEMPTS - 1:
                    raise
    finally:
        if not was_frozen:
            set_frozen(path, False)


def _move_all(source: str, target: str) -> None:
    for pid in fs.read(source, "cgroup.procs").split():
        try:
            fs.write(target, "cgroup.procs", pid)
        except ProcessLookupError:
            continue  # it has ended


def is_frozen(path: str) -> bool:
    """It was asked to freeze, and may be on its way."""
    return fs.read(path, "cgroup.freeze").strip() == "1"


def set_frozen(path: str, frozen: bool, timeout_sec: float = FREEZE_TIMEOUT_SEC) -> None:
    """All processes below `path` stand still (or run again), seen done, not only asked for.

    Raises:
        TimeoutExpired: a process did not stop in time; the cgroup is thawed again.
    """
    wanted = f"frozen {int(frozen)}"
    fd = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fs.write(path, "cgroup.freeze", "1" if frozen else "0")
        deadline = time.monotonic() + timeout_sec
        poll = select.poll()
        poll.register(fd, select.POLLPRI)  # kernfs: raised on every change of the file
        while wanted not in os.pread(fd, 256, 0).decode():
            left_sec = deadline - time.monotonic()
            if left_sec <= 0:
                fs.write(path, "cgroup.freeze", "0")
                raise TimeoutExpired(f"{path} did not become {wanted!r} in {timeout_sec} s")
            poll.poll(left_sec * 1000)
    finally:
        os.close(fd)


def kill(path: str) -> None:
    """Every process below `path` has been sent SIGKILL, with none born meanwhile left over."""
    try:
        fs.write(path, "cgroup.kill", "1")
        return
    except FileNotFoundError:
        if not os.path.isdir(path):
            return
    set_frozen(path, True)  # before Linux 5.14; a frozen process dies of SIGKILL all the same
    try:
        for pid in fs.pids(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    finally:
        set_frozen(path, False)
