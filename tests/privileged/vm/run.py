"""Run tests in a VM: Debian 12 with systemd and nothing but cgroup v2.

``python tests/privileged/vm/run.py [pytest arguments]`` builds the image (once), stages pycontain
and its tests on a second disk, boots, prints what pytest prints and exits with its exit code.
Without paths it runs all of tests/privileged but what is marked ``host``. The machine has no
network. ``run.py --exec python3 bench/memory.py`` runs something else in it.

Environment:
    PYCONTAIN_VM_CACHE      directory of built images (/var/cache/pycontain-vm)
    PYCONTAIN_VM_ACCEL      kvm or tcg: skips the probe
    PYCONTAIN_VM_TIMEOUT    seconds until the machine is stopped (1500)
    PYCONTAIN_VM_MEMORY     MiB (2048)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import image
import stage

PYTEST = ("python3", "-m", "pytest", "-p", "no:cacheprovider")
DEFAULT_ARGS = ("tests/privileged", "-m", "not host", "-q")
NEEDED = {"qemu-system-x86_64": "qemu-system-x86", "mmdebstrap": "mmdebstrap"}
PROBE_TIMEOUT_SEC = 20
EXIT_NO_RESULT = 3  # the machine ended without pytest's exit code
EXIT_UNABLE = 4


def missing() -> str:
    """Return what this host lacks to run the VM, as one phrase, or nothing."""
    lacking = [package for program, package in NEEDED.items() if not shutil.which(program)]
    if lacking:
        return "needs " + " and ".join(lacking)
    if os.geteuid() != 0:
        return "needs root to build the image"
    return ""


def guest_command(args: list[str]) -> list[str]:
    """Return what the guest runs: pytest with ``args``, or what follows ``--exec``."""
    if args[:1] == ["--exec"]:
        return args[1:]
    color = "--color=yes" if sys.stdout.isatty() else "--color=no"
    everything = all(arg.startswith("-") for arg in args)
    return [*PYTEST, color, *(DEFAULT_ARGS if everything else ()), *args]


def accelerator(booted: image.Image) -> list[str]:
    """Return QEMU's options for the fastest CPU that works here.

    /dev/kvm may exist and still fail: nested KVM on some hosts aborts QEMU or hangs. So a machine
    is booted up to its first user-space program, which shows by a panic naming exit code 0 that
    it ran (``true`` is no init).
    """
    kvm = ["-accel", "kvm", "-cpu", "host"]
    tcg = ["-accel", "tcg,thread=multi", "-cpu", "max"]
    forced = os.environ.get("PYCONTAIN_VM_ACCEL", "")
    if forced or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return kvm if forced == "kvm" else tcg
    command = [
        *("qemu-system-x86_64", *kvm, "-m", "256", "-nic", "none", "-display", "none"),
        *("-no-reboot", "-monitor", "none", "-serial", "stdio"),
        *("-kernel", str(booted.kernel_path), "-initrd", str(booted.initrd_path)),
        *("-append", "console=ttyS0 rdinit=/usr/bin/true panic=-1"),
    ]
    try:
        probe = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_TIMEOUT_SEC,
        )
    except subprocess.TimeoutExpired:
        return tcg
    return kvm if b"exitcode=0x00000000" in probe.stdout else tcg


def qemu_command(booted: image.Image, staged: Path, results: Path) -> list[str]:
    """Return the command of a machine that runs the staged tests and powers off."""
    memory = os.environ.get("PYCONTAIN_VM_MEMORY", "2048")
    quiet = "quiet loglevel=3 systemd.show_status=0"
    return [
        *("qemu-system-x86_64", *accelerator(booted), "-smp", "2", "-m", memory),
        *("-nic", "none", "-display", "none", "-monitor", "none", "-no-reboot"),
        *("-serial", f"file:{results}/console.log", "-serial", "stdio"),
        *("-kernel", str(booted.kernel_path), "-initrd", str(booted.initrd_path)),
        *("-append", f"root=/dev/vda rw console=ttyS0 panic=-1 {quiet} pycontain.tests"),
        # snapshot: the cached image stays as built
        *("-drive", f"file={booted.disk_path},format=raw,if=virtio,snapshot=on"),
        *("-drive", f"file={staged},format=raw,if=virtio,cache=unsafe"),
        *("-virtfs", f"local,path={results},mount_tag=results,security_model=none,id=results"),
        *("-device", "virtio-rng-pci"),
    ]


def boot(command: list[str], results: Path, timeout_sec: float) -> int:
    """Run the machine to its end; return pytest's exit code. QEMU never outlives this call."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        process.wait(timeout_sec)
    except subprocess.TimeoutExpired:
        print(f"vm: stopped after {timeout_sec:.0f} s (PYCONTAIN_VM_TIMEOUT)")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    try:
        return int((results / "status").read_text())
    except (OSError, ValueError):
        console = (results / "console.log").read_text(errors="replace").splitlines()
        print("vm: no result; the end of the console:", *console[-40:], sep="\n  ")
        return EXIT_NO_RESULT


def main(args: list[str]) -> int:
    """Build, stage, boot; return the exit code."""
    reason = missing()
    if reason:
        must_run = os.environ.get("PYCONTAIN_MUST_RUN") == "1"
        print(f"vm: {'failed' if must_run else 'skipped'}: {reason}")
        return EXIT_UNABLE if must_run else 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unwinds like ctrl-C
    started = time.monotonic()
    booted = image.build()
    with tempfile.TemporaryDirectory(prefix="pycontain-vm-") as scratch:
        work = Path(scratch)
        results = work / "results"
        results.mkdir()
        staged = stage.stage_disk(work, guest_command(args))
        command = qemu_command(booted, staged, results)
        ready = time.monotonic()
        print(f"vm: ready after {ready - started:.0f} s, booting: {command[2]}", flush=True)
        timeout_sec = float(os.environ.get("PYCONTAIN_VM_TIMEOUT", "1500"))
        status = boot(command, results, timeout_sec)
        print(f"vm: ran {time.monotonic() - ready:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
