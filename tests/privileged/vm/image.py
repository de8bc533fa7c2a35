"""The Debian 12 image that the VM venue boots: recipe, build, cache.

The image holds a kernel, systemd and what the tests call, nothing of pycontain: that comes on a
second disk (stage.py), so one image serves until the recipe below changes.
Source: mmdebstrap(1), mke2fs(8) option -d, initramfs-tools(7).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    "linux-image-amd64",
    # the machine
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "apparmor", "ca-certificates"),
    # what pycontain needs (its Python packages come with the staged disk)
    *("python3", "libseccomp2"),
    # what the tests call or compare with
    *("gcc", "libc6-dev", "git", "busybox-static"),
    *("crun", "iproute2", "nftables", "procps", "strace", "stress-ng", "uidmap", "libcap2-bin"),
)
BOX_PACKAGES = ("openssh-server", "sudo", "rsync")  # what Vagrant expects of a box
UNUSED_PATHS = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    *(
        f"/lib/modules/*/kernel/{directory}/*"
        for directory in (
            "drivers/gpu",
            "drivers/media",
            "drivers/net/wireless",
            "drivers/net/ethernet",
            "drivers/infiniband",
            "drivers/staging",
            "sound",
        )
    ),
)
DISK_BYTES = 3 << 30  # sparse
SITE_PATH = "/opt/pycontain/site"

# A list of four modules instead of "most": the initramfs unpacks in 1 s instead of 20 under TCG.
INITRAMFS = "MODULES=list\nCOMPRESS=zstd\nBUSYBOX=n\n"
INITRAMFS_MODULES = "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n"

TEST_UNIT = """\
[Unit]
Description=pycontain's privileged tests
ConditionKernelCommandLine=pycontain.tests
RequiresMountsFor=/opt/pycontain
After=multi-user.target dbus.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/bin/sh /opt/pycontain/guest.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
TimeoutStartSec=infinity
LimitNOFILE=1024:524288

[Install]
WantedBy=multi-user.target
"""
FSTAB = "/dev/disk/by-label/pycontain /opt/pycontain ext4 nofail,x-systemd.device-timeout=30s 0 0\n"
MASKED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-timesyncd.service",
)
BOX_NETWORK = "[Match]\nType=ether\n[Network]\nDHCP=yes\n"


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its ext4 file system and what boots it."""

    disk_path: Path
    kernel_path: Path
    initrd_path: Path


def cache_dir() -> Path:
    """Return the directory of built images: ``PYCONTAIN_VM_CACHE`` or /var/cache/pycontain-vm."""
    return Path(os.environ.get("PYCONTAIN_VM_CACHE", "/var/cache/pycontain-vm"))


def recipe_hash(*, box: bool = False) -> str:
    """Return the name of the image that this file describes: a hash of the file itself."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(b"box" if box else b"")
    return digest.hexdigest()[:16]


def build(*, box: bool = False) -> Image:
    """Return the image of this recipe, built if the cache lacks it; older ones are removed.

    Args:
        box: with an ssh server, the user ``vagrant`` and DHCP, as Vagrant expects.

    Raises:
        subprocess.CalledProcessError: mmdebstrap or mke2fs failed; their output says why.
    """
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    name = f"{'box' if box else 'debian12'}-{recipe_hash(box=box)}"
    target = cache / name
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build at a time; the others find it done
        if not target.is_dir():
            print(f"building {target} (about a minute)", flush=True)
            for interrupted in cache.glob("build-*"):
                shutil.rmtree(interrupted)
            with tempfile.TemporaryDirectory(
                dir=cache, prefix="build-", ignore_cleanup_errors=True
            ) as scratch:
                _build_into(Path(scratch), box)
                shutil.rmtree(Path(scratch, "root"))
                os.chmod(scratch, 0o755)
                os.rename(scratch, target)
                os.mkdir(scratch)  # for TemporaryDirectory to remove
            for old in cache.glob(name.rpartition("-")[0] + "-*"):
                if old != target:
                    shutil.rmtree(old)
    return Image(target / "disk.ext4", target / "vmlinuz", target / "initrd")


def _build_into(scratch: Path, box: bool) -> None:
    root = scratch / "root"
    hooks = scratch / "hooks"
    hooks.mkdir()
    (hooks / "initramfs").write_text(INITRAMFS)
    (hooks / "modules").write_text(INITRAMFS_MODULES)
    # namespaces of its own: an interrupted build leaves no process, and no mount of /proc, /sys or
    # /dev under the directory that is removed then
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    subprocess.run(
        [
            *alone,
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--quiet"),
            "--include=" + ",".join(PACKAGES + (BOX_PACKAGES if box else ())),
            *(f"--dpkgopt=path-exclude={path}" for path in UNUSED_PATHS),
            # before the kernel's package makes its initramfs
            '--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d"',
            f'--essential-hook=cp "{hooks}/initramfs" "$1/etc/initramfs-tools/conf.d/pycontain"',
            f'--essential-hook=cp "{hooks}/modules" "$1/etc/initramfs-tools/modules"',
            *(SUITE, str(root)),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    _configure(root)
    if box:
        _configure_box(root, scratch / "ssh_key")
    shutil.copyfile(next((root / "boot").glob("vmlinuz-*")), scratch / "vmlinuz")
    shutil.copyfile(next((root / "boot").glob("initrd.img-*")), scratch / "initrd")
    shutil.rmtree(hooks)
    make_disk(root, scratch / "disk.ext4", "debian12", DISK_BYTES)


def _configure(root: Path) -> None:
    """Make the file tree a machine that runs the tests when it boots, and powers off."""
    units = root / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir(parents=True, exist_ok=True)
    (units / "pycontain-tests.service").write_text(TEST_UNIT)
    wanted = units / "multi-user.target.wants/pycontain-tests.service"
    wanted.symlink_to("/etc/systemd/system/pycontain-tests.service")
    for unit in MASKED_UNITS:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (root / "etc/fstab").write_text(FSTAB)
    (root / "etc/hostname").write_text("pycontain-vm\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost pycontain-vm\n::1 localhost\n")
    (root / "opt/pycontain").mkdir(parents=True)
    packages = root / "usr/lib/python3/dist-packages"
    packages.mkdir(parents=True, exist_ok=True)
    # every python3 of the guest sees the staged packages, also with -E and -I
    (packages / "pycontain-vm.pth").write_text(SITE_PATH + "\n")


def _configure_box(root: Path, key_path: Path) -> None:
    """Add what Vagrant logs in with: the user ``vagrant`` and a new key of this box's own."""

    def chroot(*args: str) -> None:
        subprocess.run(["chroot", root, *args], check=True, stdin=subprocess.DEVNULL)

    chroot("useradd", "--create-home", "--shell", "/bin/bash", "vagrant")
    (root / "etc/fstab").write_text("")  # Vagrant copies into /opt/pycontain
    (root / "etc/sudoers.d/vagrant").write_text("vagrant ALL=(ALL) NOPASSWD: ALL\n")
    (root / "etc/sudoers.d/vagrant").chmod(0o440)
    keys = root / "home/vagrant/.ssh/authorized_keys"
    keys.parent.mkdir(mode=0o700)
    # ecdsa in PEM: the one kind that every version of Vagrant's own ssh client reads
    keygen = ["ssh-keygen", "-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-f", str(key_path)]
    subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
    keys.write_bytes(key_path.with_suffix(".pub").read_bytes())
    chroot("chown", "-R", "vagrant:vagrant", "/home/vagrant/.ssh")
    (root / "etc/systemd/network").mkdir(parents=True, exist_ok=True)
    (root / "etc/systemd/network/80-dhcp.network").write_text(BOX_NETWORK)
    chroot("systemctl", "enable", "systemd-networkd", "ssh")


def make_disk(tree: Path, disk_path: Path, label: str, size_bytes: int) -> None:
    """Write ``tree`` as an ext4 file system of ``size_bytes`` (sparse) without mounting it."""
    with open(disk_path, "wb") as disk:
        disk.truncate(size_bytes)
    options = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-m", "0", "-E", options]
    # a fresh Debian 12 has no sbin in the PATH of every caller
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    subprocess.run([*command, "-d", tree, disk_path], check=True, env=environment)
