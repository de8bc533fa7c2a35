"""Known escapes, one test each: what a hostile root file system or a container tries, and fails.

The root file systems are made by hand around a static busybox; the CVE is named where there is one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pycontain import Engine, InvalidInput, PycontainError
from pycontain.errors import ChildSetupError, CommandNotFound

pytestmark = pytest.mark.needs("program:busybox")


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A root file system with busybox and nothing else."""
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    for name in ("sh", "cat", "ls", "id", "mount", "ln", "echo", "dd", "mknod", "hostname", "kill"):
        (root / "bin" / name).symlink_to("busybox")
    return root


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A directory of the host that nothing may reach; its content is checked after the test."""
    directory = tmp_path / "canary"
    directory.mkdir()
    (directory / "file").write_text("untouched")
    return directory


def untouched(canary: Path) -> bool:
    return [p.name for p in canary.iterdir()] == ["file"] and (
        canary / "file"
    ).read_text() == "untouched"


def sh(engine: Engine, rootfs: Path, script: str, **options: object) -> tuple[int, str, str]:
    """Run a shell script in the root; returns exit code, stdout, stderr."""
    result = engine.run(
        f"rootfs:{rootfs}", ["/bin/sh", "-c", script], capture_output=True, text=True,
        timeout=30, **options,
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_mount_point_that_is_a_symbolic_link_is_refused(
    engine: Engine, rootfs: Path, canary: Path, name: str
) -> None:
    """/proc, /sys and /dev may not lead elsewhere (CVE-2019-19921, CVE-2023-27561, 2026-41579)."""
    (rootfs / name).symlink_to(canary)
    with pytest.raises(ChildSetupError, match=f"/{name}"):
        sh(engine, rootfs, "true")
    assert untouched(canary)


def test_bind_destination_stays_inside(engine: Engine, rootfs: Path, canary: Path) -> None:
    """A link in the image names a path of the image, whatever it says (CVE-2021-30465)."""
    (rootfs / "link").symlink_to(f"../../../../../../{canary}")
    source = rootfs.parent / "source"
    source.mkdir()
    with pytest.raises(ChildSetupError, match=r"/link/sub.*symbolic link"):
        sh(engine, rootfs, "true", volumes=[f"{source}:/link/sub"])  # nothing there in the image
    (rootfs / str(canary)[1:]).mkdir(parents=True)
    code, out, _ = sh(engine, rootfs, f"ls {canary}", volumes=[f"{source}:/link/sub"])
    assert (code, out) == (0, "sub\n")
    assert untouched(canary)


@pytest.mark.parametrize(
    "cwd", ["/proc/self/fd/3", "/proc/self/fd/7", "/proc/1/root", "/proc/1/cwd"]
)
def test_working_directory_can_not_be_a_leaked_descriptor(
    engine: Engine, rootfs: Path, cwd: str
) -> None:
    """CVE-2024-21626: nothing of ours is open, and an unreachable cwd is refused."""
    with pytest.raises(PycontainError):
        code, out, _ = sh(engine, rootfs, "pwd; ls", cwd=cwd)
        # /proc/1/root and /proc/1/cwd are the container's own: harmless, if they are.
        assert code == 0 and "canary" not in out
        raise InvalidInput("stayed inside")


def test_no_descriptor_of_ours_is_open_in_the_container(engine: Engine, rootfs: Path) -> None:
    """0, 1 and 2, and what ls itself opens to look."""
    held = [os.open("/", os.O_RDONLY) for _ in range(3)]
    for fd in held:
        os.set_inheritable(fd, True)
    try:
        _, out, _ = sh(engine, rootfs, "ls /proc/self/fd")
    finally:
        for fd in held:
            os.close(fd)
    assert out.split() == ["0", "1", "2", "3"]


def test_masked_paths_are_empty_and_protected_ones_read_only(engine: Engine, rootfs: Path) -> None:
    """What tells about the host or steers it is out of reach, also for the container's root."""
    script = """
    cat /proc/kcore | dd bs=1 count=1 2>/dev/null
    cat /proc/timer_list /proc/interrupts /proc/keys 2>/dev/null
    ls -A /sys/firmware
    echo 1 > /proc/sys/kernel/printk && echo WROTE-SYSCTL
    echo b > /proc/sysrq-trigger && echo WROTE-SYSRQ
    echo x > /sys/kernel/uevent_helper && echo WROTE-HELPER
    echo x > /proc/irq/default_smp_affinity && echo WROTE-IRQ
    """
    _, out, _ = sh(engine, rootfs, script)
    assert out == ""


def test_mask_does_not_use_the_images_null_device(engine: Engine, rootfs: Path) -> None:
    """CVE-2025-31133: an image's /dev/null may be anything; ours is made in our own /dev."""
    (rootfs / "dev").mkdir()
    (rootfs / "dev" / "null").symlink_to("/proc/sys/kernel/core_pattern")
    _, out, _ = sh(engine, rootfs, "ls -l /dev/null; cat /proc/kcore | dd bs=1 count=1 2>/dev/null")
    assert out.startswith("crw-rw-rw-")
    assert len(out.splitlines()) == 1


def test_core_pattern_can_not_be_written(engine: Engine, rootfs: Path) -> None:
    """The classic way to run a program on the host."""
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    sh(engine, rootfs, "echo '|/bin/sh' > /proc/sys/kernel/core_pattern", user="0")
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_mounting_and_namespaces_are_forbidden(engine: Engine, rootfs: Path) -> None:
    """No capability and no system call for it (CVE-2022-0185's and CVE-2022-0492's way in)."""
    code, _, err = sh(engine, rootfs, "mount -t tmpfs none /mnt")
    assert code != 0
    assert "denied" in err or "not permitted" in err
    code, out, _ = sh(engine, rootfs, "/bin/busybox unshare -U -m true && echo IN")
    assert "IN" not in out


def test_device_nodes_of_the_image_open_nothing(engine: Engine, rootfs: Path) -> None:
    """A block device of the host in a layer, or made inside with CAP_MKNOD, can't be read."""
    host = os.stat("/").st_dev
    os.mknod(rootfs / "disk", 0o60666, host)
    _, _, err = sh(engine, rootfs, "dd if=/disk bs=512 count=1 | cat && echo")
    assert "not permitted" in err.lower() or "denied" in err.lower()
    script = f"mknod /d b {os.major(host)} {os.minor(host)}; dd if=/d bs=512 count=1 >/dev/null"
    code, _, err = sh(engine, rootfs, script, cap_add=["MKNOD"])
    assert code != 0
    assert "not permitted" in err.lower() or "denied" in err.lower()


def test_user_file_that_is_a_fifo_does_not_hang(engine: Engine, rootfs: Path) -> None:
    """CVE-2024-9676: /etc/passwd as a FIFO or as a link to the host's."""
    (rootfs / "etc").mkdir()
    os.mkfifo(rootfs / "etc" / "passwd")
    with pytest.raises(PycontainError):
        sh(engine, rootfs, "id", user="somebody")


def test_user_name_is_looked_up_in_the_image_only(engine: Engine, rootfs: Path) -> None:
    """A link to the host's passwd leads to the image's (CVE-2019-14271's class)."""
    (rootfs / "etc").mkdir()
    (rootfs / "etc" / "real").write_text("daemon:x:4321:4321::/:/bin/sh\n")
    (rootfs / "etc" / "passwd").symlink_to("/etc/real")
    _, out, _ = sh(engine, rootfs, "id -u", user="daemon")
    assert out.strip() == "4321"


def test_overflowing_uid_is_refused(engine: Engine, rootfs: Path) -> None:
    """CVE-2024-40635: 2**32 must not become root."""
    with pytest.raises(InvalidInput, match="user"):
        sh(engine, rootfs, "id", user="4294967296")


def test_inheritable_capabilities_are_empty(engine: Engine, rootfs: Path) -> None:
    """CVE-2022-29162; and nobody but root has any."""
    _, out, _ = sh(engine, rootfs, "cat /proc/self/status | busybox grep Cap || "
                   "/bin/busybox grep Cap /proc/self/status")  # fmt: skip
    caps = dict(line.split(":\t") for line in out.splitlines())
    assert int(caps["CapInh"], 16) == 0 and int(caps["CapAmb"], 16) == 0
    _, out, _ = sh(engine, rootfs, "/bin/busybox grep Cap /proc/self/status", user="1000:1000")
    caps = dict(line.split(":\t") for line in out.splitlines())
    assert int(caps["CapEff"], 16) == 0 and int(caps["CapPrm"], 16) == 0


def test_host_processes_and_names_are_invisible(engine: Engine, rootfs: Path) -> None:
    """Its own pid namespace, host name and mounts: nothing of the host's shows."""
    _, out, _ = sh(engine, rootfs, "echo name=$(hostname); ls /proc; cat /proc/self/mountinfo")
    pids = [word for word in out.split() if word.isdigit() and int(word) > 100]
    lines = out.splitlines()
    assert not [p for p in pids if p in lines]
    assert str(rootfs) not in out.replace(f"{rootfs} / ", "")  # the root's own source may be named
    assert f"name={os.uname().nodename}" not in lines


def test_cgroup_tree_is_read_only_and_its_own(engine: Engine, rootfs: Path) -> None:
    """release_agent and limits are out of reach (CVE-2022-0492, CVE-2023-25809)."""
    script = """
    cat /proc/self/cgroup
    for f in $(/bin/busybox find /sys/fs/cgroup -name release_agent -o -name 'memory.*limit*' \
               -o -name memory.max -o -name cgroup.procs); do
        (echo 1 > $f) 2>/dev/null && echo "WROTE $f"
    done
    """
    _, out, _ = sh(engine, rootfs, script)
    assert "WROTE" not in out
    assert all(line.split(":", 2)[2] == "/" or "name=" in line for line in out.splitlines()), out


def test_terminal_injection_is_blocked(engine: Engine, rootfs: Path) -> None:
    """TIOCSTI types into the caller's terminal (CVE-2017-5226): the container has a session of its
    own, and its standard streams are no controlling terminal."""
    _, out, _ = sh(engine, rootfs, "cat /proc/self/stat")
    fields = out.rsplit(")", 1)[1].split()
    assert fields[4] == "0"  # tty_nr: none


def test_command_is_searched_in_the_container_only(engine: Engine, rootfs: Path) -> None:
    """A host program's name is no command of the container."""
    with pytest.raises(CommandNotFound, match="python3"):
        engine.run(f"rootfs:{rootfs}", ["python3"])
