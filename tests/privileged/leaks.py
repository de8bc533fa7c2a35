"""What a test may leave behind, as comparable snapshots.

A snapshot is a multiset of strings such as ``mount /newroot overlay``, cheap enough to take around
every test. Names of ours alone are looked at where the machine is shared with others (cgroups,
interfaces, nft tables); everything is looked at where the test owns it (descriptors, children,
its state and data directories).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

STATE_ROOT = Path("/run/pycontain")
LASTING_FILES = frozenset(("monitor.sock", "monitor.lock"))  # of a state root, made once
OUR_LINKS = "pyc"
OUR_NAME = "pycontain"
CGROUP_DEPTH = 4

Snapshot = Counter[str]


def of_process() -> Snapshot:
    """Descriptors and children of this process."""
    return Counter([*_descriptors(), *_children()])


def of_machine() -> Snapshot:
    """All mounts, and what is ours of cgroups, namespaces, links, nft tables and files."""
    return Counter([*_mounts(), *_cgroups(), *_network(), *_files(STATE_ROOT)])


def of_roots(state_root: Path, data_root: Path) -> Snapshot:
    """Containers in two directories, mounts below them, processes started for the state root."""
    found = [*_files(state_root), *_processes(str(state_root))]
    roots = (f"mount {state_root}/", f"mount {data_root}/")
    found += [mount for mount in _mounts() if mount.startswith(roots)]
    for part in ("containers", "tmp"):
        found += _files(data_root / part)
    return Counter(found)


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """Return one line for each thing that appeared or vanished between two snapshots."""
    appeared = (f"left behind: {name}" for name in sorted((after - before).elements()))
    vanished = (f"taken away: {name}" for name in sorted((before - after).elements()))
    return [*appeared, *vanished]


def _descriptors() -> Iterator[str]:
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the descriptor of the listing itself
        # One device program for each set of rules is kept for the life of the process, by design.
        if not target.endswith("/fd") and target != "anon_inode:bpf-prog":
            yield f"fd {entry} -> {target}"


def _children() -> Iterator[str]:
    for task in os.listdir("/proc/self/task"):
        try:
            children = Path("/proc/self/task", task, "children").read_text().split()
        except OSError:
            continue  # a thread that ended meanwhile
        for pid in children:
            yield f"child {pid} ({_read(f'/proc/{pid}/stat').rpartition(')')[0]})"


def _mounts() -> Iterator[str]:
    with open("/proc/self/mountinfo") as table:
        for line in table:
            fields, _, after = line.partition(" - ")
            _, _, _, root, mount_point, _ = fields.split(" ", 5)
            yield f"mount {mount_point} of {after.split(' ')[0]} from {root}"


def _cgroups() -> Iterator[str]:
    """Groups below those whose name is ours; the parents themselves may stay.

    So may a scope's leaf of the monitor once it is empty: systemd removes both in its own time.
    """
    for mount in _cgroup_mounts():
        for parent in _named(mount, CGROUP_DEPTH):
            for path, _, _ in os.walk(parent):
                is_leaf = path == f"{parent}/monitor" and parent.endswith(".scope")
                if path != parent and not (is_leaf and _is_empty(path)):
                    yield f"cgroup {path}"


def _is_empty(cgroup_path: str) -> bool:
    return "populated 1" not in _read(f"{cgroup_path}/cgroup.events")


def _cgroup_mounts() -> list[str]:
    with open("/proc/self/mountinfo") as table:
        return [line.split(" ")[4] for line in table if " - cgroup" in line]


def _named(directory: str, depth: int) -> Iterator[str]:
    try:
        entries = [e.path for e in os.scandir(directory) if e.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for path in entries:
        if os.path.basename(path).startswith(OUR_NAME):
            yield path
        elif depth > 1:
            yield from _named(path, depth - 1)


def _network() -> Iterator[str]:
    if os.path.isdir("/run/netns"):
        yield from (f"netns {name}" for name in os.listdir("/run/netns"))
    links = os.listdir("/sys/class/net")
    yield from (f"link {name}" for name in links if name.startswith(OUR_LINKS))
    # loaded only once something used nftables: no need to ask before
    if os.path.isdir("/sys/module/nf_tables") and shutil.which("nft"):
        command = ["nft", "list", "tables"]
        listing = subprocess.run(command, check=False, capture_output=True, text=True)
        yield from (f"nft {line}" for line in listing.stdout.splitlines() if OUR_NAME in line)


def _files(root: Path) -> Iterator[str]:
    for path, directories, files in os.walk(root):
        yield from (f"file {path}/{name}" for name in files if name not in LASTING_FILES)
        if path != str(root):
            yield from (f"directory {path}/{name}" for name in directories)


def _processes(state_root: str) -> Iterator[str]:
    wanted = state_root.encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                command = Path("/proc", entry, "cmdline").read_bytes()
            except OSError:
                continue
            if wanted in command:
                yield f"process {entry}: {command.replace(bytes(1), b' ').decode()}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
