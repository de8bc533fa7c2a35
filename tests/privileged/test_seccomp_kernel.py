"""The default filter in the kernel: what it refuses, and that ordinary programs run under it.

A small C program, built here, installs the filter on itself and executes the rest of its arguments.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pycontain.isolation import capabilities, seccomp
from pycontain.isolation.seccomp import Profile, compile_filter, default_filter
from pycontain.isolation.seccomp_profile import ALLOW, ERRNO, Rule

APPLY = r"""
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static struct sock_filter code[4096];
    int fd = open(argv[1], O_RDONLY);
    ssize_t bytes = read(fd, code, sizeof code);
    close(fd);
    struct sock_fprog program = {bytes / sizeof code[0], code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return perror("nnp"), 120;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) return perror("seccomp"), 121;
    execvp(argv[2], argv + 2);
    return perror(argv[2]), 127;
}
"""
# Prints "name errno" of each call given as name:number:arg,arg,...
PROBE = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for probe in sys.argv[1:]:
    name, number, args = probe.split(":")
    ctypes.set_errno(0)
    numbers = [ctypes.c_long(int(a, 0)) for a in [number, *args.split(",")] if a]
    libc.syscall(*numbers)
    print(name, ctypes.get_errno())
"""

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="session")
def apply(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that installs a filter and executes a command."""
    directory = tmp_path_factory.mktemp("seccomp")
    (directory / "apply.c").write_text(APPLY)
    subprocess.run(["cc", "-o", "apply", "apply.c"], cwd=directory, check=True)
    (directory / "filter").write_bytes(default_filter(capabilities.DEFAULT))
    return directory / "apply"


def run(
    apply: Path, *command: str, code: bytes | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `command` under a filter, the default one if none is given."""
    path = apply.with_name("filter")
    if code is not None:
        path = apply.with_name("other")
        path.write_bytes(code)
    return subprocess.run(
        [apply, path, *command], capture_output=True, text=True, timeout=60, cwd=cwd, check=False
    )


X86_ONLY = pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs x86_64 numbers")
EPERM, ENOSYS, EFAULT, EBADF, EINVAL, EAFNOSUPPORT, ENOTTY = 1, 38, 14, 9, 22, 97, 25
HIGH = 1 << 32
REFUSED = {
    "mount:165:0,0,0,0,0": EPERM,
    "umount2:166:0,0": EPERM,
    "unshare:272:0x10000000": EPERM,
    "setns:308:-1,0": EPERM,
    "pivot_root:155:0,0": EPERM,
    "fsopen:430:0,0": EPERM,
    "open_tree:428:-1,0,0": EPERM,
    "clone_newuser:56:0x10000011,0,0,0,0": EPERM,
    "clone3:435:0,0": ENOSYS,
    "bpf:321:0,0,0": EPERM,
    "perf_event_open:298:0,0,0,0,0": EPERM,
    "keyctl:250:0,0,0,0,0": EPERM,
    "add_key:248:0,0,0,0,0": EPERM,
    "userfaultfd:323:0": EPERM,
    "io_uring_setup:425:1,0": ENOSYS,
    "kexec_load:246:0,0,0,0": EPERM,
    "init_module:175:0,0,0": EPERM,
    "open_by_handle_at:304:-1,0,0": EPERM,
    "modify_ldt:154:0,0,0": ENOSYS,
    "unknown:4000:0": ENOSYS,
    "af_alg:41:38,5,0": EAFNOSUPPORT,
    f"af_alg_high_bits:41:{38 | HIGH},5,0": EAFNOSUPPORT,
    "af_vsock:41:40,1,0": EAFNOSUPPORT,
    "af_key:41:15,3,2": EAFNOSUPPORT,
    f"af_inet_high_bits:41:{2 | HIGH},1,0": EAFNOSUPPORT,
    "af_packet:41:17,3,0": EPERM,
    "tipc_pair:53:30,1,0,0": ENOSYS,
    "tiocsti:16:0,0x5412,0": EPERM,
    f"tiocsti_high_bits:16:0,{0x5412 | HIGH},0": EPERM,
    f"tioclinux_high_bits:16:0,{0x541C | 7 << 40},0": EPERM,
    "no_randomize:135:0x40000": ENOSYS,
}
PASSED = {
    "af_unix:41:1,1,0": 0,
    "af_inet:41:2,1,0": 0,
    "af_inet6:41:10,1,0": 0,
    "af_netlink:41:16,3,0": 0,
    "fionread:16:-1,0x541B,0": EBADF,
    "personality:135:0xffffffff": 0,
    "openat2:437:-1,0,0,0": EINVAL,
    "close_range:436:1,0,0": EINVAL,
}


@X86_ONLY
@pytest.mark.parametrize(("probe", "errno"), [*REFUSED.items(), *PASSED.items()])
def test_calls_get_the_answer_that_the_profile_gives(apply: Path, probe: str, errno: int) -> None:
    """Each probe fails, as root with all capabilities, with the errno that the filter chose."""
    done = run(apply, sys.executable, "-c", PROBE, probe)
    assert done.stdout == f"{probe.split(':')[0]} {errno}\n", done.stderr


@X86_ONLY
@pytest.mark.parametrize("shift", ["int $0x80", "x32"])
def test_other_abis_are_killed(apply: Path, tmp_path: Path, shift: str) -> None:
    """A 32-bit or x32 system call ends the process, so it can't get around argument filters."""
    nr = "0x40000027" if shift == "x32" else "20"
    insn = "syscall" if shift == "x32" else "int $0x80"
    (tmp_path / "abi.c").write_text(
        f'int main(void) {{ long r = {nr}; __asm__ volatile("{insn}" : "+a"(r)'
        ' : : "rcx", "r11", "memory"); return 0; }'
    )
    subprocess.run(["cc", "-o", "abi", "abi.c"], cwd=tmp_path, check=True)
    assert run(apply, str(tmp_path / "abi")).returncode == -signal.SIGSYS


PYTHON = """
import asyncio, subprocess, threading, socket, os, tempfile, ssl, sqlite3, mmap, select
from concurrent.futures import ThreadPoolExecutor, ProcessPoolExecutor
assert subprocess.run(["sh", "-c", "echo x | cat"], capture_output=True).stdout == b"x\\n"
threads = [threading.Thread(target=lambda: None) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
async def main():
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close(); server.close()
asyncio.run(main())
socket.getaddrinfo("localhost", 80)
a, b = socket.socketpair(); a.send(b"1"); b.recv(1)
with tempfile.TemporaryDirectory() as d:
    c = sqlite3.connect(d + "/x.db"); c.execute("create table t (a)"); c.commit(); c.close()
    os.symlink("a", d + "/l"); os.rename(d + "/l", d + "/m"); os.mkfifo(d + "/f")
if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool: assert list(pool.map(abs, [-1, 2])) == [1, 2]
print("fine")
"""
PROGRAMS = {
    "python": (["python3", "-c", PYTHON], "fine"),
    "bash": (["bash", "-c", "set -o pipefail; seq 9 | sort -r | head -1; (exit 3) || echo 3"], "3"),
    "job control": (
        ["bash", "-c", "sleep 0 & wait $!; trap 'echo caught' USR1; kill -USR1 $$"],
        "caught",
    ),
    "tar": (["sh", "-c", "tar c -C /etc passwd | tar tv | grep -c passwd"], "1"),
    "dpkg": (["sh", "-c", "dpkg -l base-files | grep -c '^ii'"], "1"),
    "apt": (
        ["sh", "-c", "apt-get --version | head -1 | cut -c1-3; apt-cache policy base-files"],
        "apt",
    ),
    "git": (
        [
            "sh",
            "-ec",
            (
                "git init -q a; cd a; git -c user.name=n -c user.email=e@x commit -q --allow-empty "
                "-m m; cd ..; git clone -q a b 2>&1; git -C b log --format=%s"
            ),
        ],
        "m",
    ),
    "node": (
        [
            "node",
            "-e",
            (
                "require('fs').promises.readFile('/etc/passwd').then(() => { const {Worker} = "
                "require('worker_threads'); new Worker('1', {eval: true}).on('exit', c => "
                "console.log(require('child_process').execSync('echo node') + '')) })"
            ),
        ],
        "node",
    ),
    "cc": (["sh", "-c", "echo 'int main(void){return 7;}' >x.c; cc x.c -o x; ./x; echo $?"], "7"),
    "perl": (["perl", "-e", "print `echo perl`"], "perl"),
    "setpriv": (["setpriv", "--reuid=65534", "--clear-groups", "id", "-u"], "65534"),
    "ip": (["sh", "-c", "ip link show lo | grep -c LOOPBACK"], "1"),
    "strace": (["sh", "-c", "strace -f -o /dev/null echo traced"], "traced"),
    "chroot": (["chroot", "/", "echo", "chrooted"], "chrooted"),
    "find": (["sh", "-c", "find /etc -maxdepth 1 -name passwd | xargs -P2 ls -l | wc -l"], "1"),
    "chmod": (
        ["sh", "-c", "touch f; chmod 640 f; chown 1:1 f; cp -a f g; stat -c %a:%u g"],
        "640:1",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_ordinary_programs_run(apply: Path, tmp_path: Path, name: str) -> None:
    """Programs that people run in containers work under the filter and say what they should."""
    command, said = PROGRAMS[name]
    program = name if shutil.which(name) else command[0]
    if shutil.which(name) is None and name in ("node", "strace", "ip", "git", "perl", "dpkg"):
        pytest.skip(f"needs {name}")
    assert shutil.which(program)
    done = run(apply, *command, cwd=tmp_path)
    assert (done.returncode, said in done.stdout) == (0, True), (done.stdout, done.stderr)


def test_musl_programs_run(apply: Path) -> None:
    """A static busybox starts and forks."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox")
    done = run(apply, busybox, "sh", "-c", "busybox echo a | busybox tr a b")
    assert done.stdout == "b\n", done.stderr


@X86_ONLY
def test_capabilities_open_their_calls(apply: Path) -> None:
    """With CAP_SYS_ADMIN in the set the mount family and clone3 reach the kernel."""
    code = default_filter(capabilities.parse(["SYS_ADMIN"]))
    probes = {"mount:165:0,0,0,0,0": EFAULT, "setns:308:-1,0": EBADF, "clone3:435:0,0": EINVAL}
    done = run(apply, sys.executable, "-c", PROBE, *probes, code=code)
    expected = [f"{probe.split(':')[0]} {errno}" for probe, errno in probes.items()]
    assert done.stdout.splitlines() == expected, done.stderr


# What the default allows to everyone, without the calls numbered from 440 on.
OLD_CALLS = [
    name
    for rule in seccomp.DEFAULT.rules
    if rule.action == ALLOW and not rule.caps
    for name in rule.names
    if name not in seccomp._COMMON.split()[440 - seccomp._FIRST_COMMON :]
]


@X86_ONLY
def test_a_call_newer_than_an_eperm_profile_is_unknown(apply: Path) -> None:
    """Under a deny-by-EPERM profile a call above all named ones gives ENOSYS, a lower one EPERM."""
    profile = seccomp.load_profile(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": [n], "action": "SCMP_ACT_ALLOW"} for n in OLD_CALLS],
        }
    )
    code = compile_filter(profile, 0)
    done = run(apply, sys.executable, "-c", PROBE, "new:440:0", "old:165:0,0,0,0,0", code=code)
    assert done.stdout == f"new {ENOSYS}\nold {EPERM}\n", done.stderr


def test_an_errno_comes_back(apply: Path) -> None:
    """An OCI rule's errnoRet is what the program sees."""
    rules = (Rule(("getppid", "uname"), ERRNO | 111),)
    code = compile_filter(Profile(default_action=ALLOW, rules=rules), 0)
    done = run(apply, "uname", code=code)
    assert "Connection refused" in done.stderr
