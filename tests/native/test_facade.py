"""The typed facade: what it returns, what its errors say, and that no descriptor is lost."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pycontain import _native as native
from pycontain._native import C, extension, paths
from pycontain.errors import InternalError, InvalidInput, KernelError

pytestmark = pytest.mark.usefixtures("no_fd_left")

ROOT = native.RESOLVE_IN_ROOT
BENEATH = native.RESOLVE_BENEATH


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip(f"needs root ({what})")


# ---- loading ---------------------------------------------------------------------------------


def test_abi_is_that_of_the_header() -> None:
    """The Python side, the extension and plan.h speak the same ABI."""
    assert native.ABI == C.PYC_ABI == native.lib.PYC_ABI


@pytest.mark.parametrize(("abi", "version"), [(999, native.VERSION), (native.ABI, "0.0.0")])
def test_mismatched_extension_is_refused(abi: int, version: str) -> None:
    """An extension of another ABI or version raises ImportError and says what to do."""
    with pytest.raises(ImportError, match=rf"version {version} \(ABI {abi}\).*Reinstall"):
        extension.check(abi, version)


def test_program_that_is_not_installed_is_our_fault() -> None:
    """A missing static program is a broken installation and says so."""
    with pytest.raises(InternalError, match=r"nonesuch is missing.*reinstall"):
        native.binary_path("nonesuch")


# ---- openat2: the same cases with the kernel's and with ours ---------------------------------


@pytest.fixture(params=["kernel", "walk"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.setattr(paths, "_missing", name == "walk")
    return name


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    """An O_PATH fd of a directory with every kind of link in it, and a secret next to it."""
    (tmp_path / "secret").write_text("host")
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_text("inside")
    (root / "secret").write_text("inside")
    for name, target in {
        "rel": "a/b/file",
        "abs": "/a/b/file",
        "dirlink": "a/b",
        "climb": "../secret",
        "climb2": "a/b/../../../secret",
        "host": str(tmp_path / "secret"),
        "loop": "loop",
        "dangling": "a/new",
        "dangling_out": "../outside",
        "dot": ".",
        "empty_end": "a/b/",
    }.items():
        (root / name).symlink_to(target)
    (root / "chain0").symlink_to("a/b/file")
    for i in range(1, 45):
        (root / f"chain{i}").symlink_to(f"chain{i - 1}")
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def opened(tree: int, path: str, flags: int = os.O_RDONLY, mode: int = 0, resolve: int = 0) -> str:
    """Open, and return the kernel's name of what was opened, relative to the tree."""
    fd = native.openat2(tree, path, flags, mode, resolve)
    try:
        assert not os.get_inheritable(fd)
        return os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tree_name(tree))
    finally:
        os.close(fd)


def tree_name(tree: int) -> str:
    return os.readlink(f"/proc/self/fd/{tree}")


def refused(tree: int, path: str, resolve: int, flags: int = os.O_RDONLY, mode: int = 0) -> str:
    """Open, expect a refusal and return its errno's name."""
    with pytest.raises(KernelError) as caught:
        os.close(native.openat2(tree, path, flags, mode, resolve))
    return errno.errorcode[caught.value.errno or 0]


@pytest.mark.parametrize(
    ("path", "arrives"),
    [
        ("a/b/file", "a/b/file"),
        ("/a/b/file", "a/b/file"),
        ("a/./b//file", "a/b/file"),
        ("rel", "a/b/file"),
        ("abs", "a/b/file"),
        ("dirlink/file", "a/b/file"),
        ("dirlink/../b/file", "a/b/file"),
        ("climb", "secret"),
        ("climb2", "secret"),
        ("../../../secret", "secret"),
        ("dot/dot/secret", "secret"),
        ("chain39", "a/b/file"),
        (".", "."),
        ("/", "."),
        ("..", "."),
        ("a/b/..", "a"),
        ("empty_end", "a/b"),
        ("dirlink/", "a/b"),
    ],
)
def test_in_root_stays_inside(backend: str, tree: int, path: str, arrives: str) -> None:
    """Links and ".." are resolved as if the directory were "/"."""
    assert opened(tree, path, resolve=ROOT) == arrives


@pytest.mark.parametrize(
    ("path", "resolve", "name"),
    [
        ("host", ROOT, "ENOENT"),
        ("missing", ROOT, "ENOENT"),
        ("", ROOT, "ENOENT"),
        ("loop", ROOT, "ELOOP"),
        ("chain41", ROOT, "ELOOP"),
        ("a/b/file/x", ROOT, "ENOTDIR"),
        ("a/b/file/..", ROOT, "ENOTDIR"),
        ("a/b/file/", ROOT, "ENOTDIR"),
        ("x" * 300, ROOT, "ENAMETOOLONG"),
        ("a/" * 2100, ROOT, "ENAMETOOLONG"),
        ("/a", BENEATH, "EXDEV"),
        ("abs", BENEATH, "EXDEV"),
        ("..", BENEATH, "EXDEV"),
        ("a/../../secret", BENEATH, "EXDEV"),
        ("climb", BENEATH, "EXDEV"),
        ("rel", ROOT | native.RESOLVE_NO_SYMLINKS, "ELOOP"),
        ("dirlink/file", ROOT | native.RESOLVE_NO_SYMLINKS, "ELOOP"),
        ("a", ROOT | BENEATH, "EINVAL"),
        ("a", 1 << 40, "EINVAL"),
    ],
)
def test_what_would_leave_is_refused(
    backend: str, tree: int, path: str, resolve: int, name: str
) -> None:
    """Both back ends refuse the same paths with the same errno."""
    assert refused(tree, path, resolve) == name


def test_beneath_allows_what_stays_below(backend: str, tree: int) -> None:
    """RESOLVE_BENEATH follows links and ".." that never reach above the directory."""
    assert opened(tree, "dirlink/../b/file", resolve=BENEATH) == "a/b/file"


def test_nofollow_opens_the_link_itself(backend: str, tree: int) -> None:
    """O_PATH|O_NOFOLLOW gives the link; O_NOFOLLOW alone refuses it."""
    assert opened(tree, "host", os.O_PATH | os.O_NOFOLLOW, resolve=ROOT) == "host"
    assert refused(tree, "host", ROOT, os.O_NOFOLLOW) == "ELOOP"
    assert refused(tree, "rel", ROOT, os.O_PATH | os.O_DIRECTORY) == "ENOTDIR"


def test_create(backend: str, tree: int) -> None:
    """O_CREAT makes the file inside, also behind a dangling link, and never outside."""
    flags = os.O_CREAT | os.O_WRONLY
    assert opened(tree, "new", flags, 0o640, ROOT) == "new"
    assert opened(tree, "dangling", flags, 0o600, ROOT) == "a/new"
    assert opened(tree, "dangling_out", flags, 0o600, ROOT) == "outside"
    assert not (Path(tree_name(tree)).parent / "outside").exists()
    assert opened(tree, "a/b/file", flags, 0o600, ROOT) == "a/b/file"
    assert refused(tree, "dangling", ROOT, flags | os.O_EXCL, 0o600) == "EEXIST"
    assert refused(tree, "x/", ROOT, flags, 0o600) == "EISDIR"
    assert refused(tree, "a", ROOT, os.O_RDONLY, 0o600) == "EINVAL"
    mode = os.stat("new", dir_fd=tree).st_mode
    assert stat.S_IMODE(mode) & 0o137 == 0o640 & 0o137 & mode


def test_temporary_file(backend: str, tree: int) -> None:
    """O_TMPFILE makes a nameless file in a directory of the tree."""
    fd = native.openat2(tree, "dirlink", os.O_TMPFILE | os.O_RDWR, 0o600, ROOT)
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


@pytest.mark.parametrize("name", ["root", "cwd", "exe", "fd/0", "ns/mnt"])
def test_magic_links_are_refused(backend: str, name: str) -> None:
    """No magic link of procfs leads anywhere; textual ones of its root do."""
    proc = os.open("/proc", os.O_PATH)
    resolve = native.RESOLVE_NO_MAGICLINKS
    try:
        assert refused(proc, f"self/{name}", resolve, os.O_PATH) == "ELOOP"
        fd = native.openat2(proc, "self/status", os.O_RDONLY, 0, resolve)
        os.close(fd)
    finally:
        os.close(proc)


def test_unscoped_walk(backend: str, tree: int) -> None:
    """Without a scope a path means what it always means, magic links excepted."""
    name = tree_name(tree)
    assert opened(tree, "../secret") == "../secret"
    assert opened(tree, f"{name}/a/../host") == "../secret"
    fd = native.openat2(native.AT_FDCWD, f"{name}/rel", os.O_RDONLY)
    assert os.readlink(f"/proc/self/fd/{fd}") == f"{name}/a/b/file"
    os.close(fd)


def test_mount_crossing_is_refused(backend: str) -> None:
    """RESOLVE_NO_XDEV stops at mount points, also at the last component."""
    root = os.open("/", os.O_PATH)
    try:
        assert refused(root, "proc", native.RESOLVE_NO_XDEV, os.O_PATH) == "EXDEV"
        assert refused(root, "proc/self/status", native.RESOLVE_NO_XDEV) == "EXDEV"
        os.close(native.openat2(root, "usr/..", os.O_PATH, 0, native.RESOLVE_NO_XDEV))
    finally:
        os.close(root)


def test_swapped_directories_never_lead_out(backend: str, tree: int) -> None:
    """While somebody swaps a directory for a link to the host, no open shows the host's file."""
    root = Path(tree_name(tree))
    (root / "flip").mkdir()
    (root / "flip/secret").write_text("inside")
    (root / "flop").symlink_to(root.parent)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for a, b in (("flip", "tmp"), ("flop", "flip"), ("tmp", "flop")):
                os.rename(a, b, src_dir_fd=tree, dst_dir_fd=tree)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        seen = set()
        for _ in range(400):
            try:
                fd = native.openat2(tree, "flip/secret", os.O_RDONLY, 0, ROOT)
            except KernelError as error:
                seen.add(error.errno)
                continue
            with open(fd) as file:
                assert file.read() == "inside"
    finally:
        stop.set()
        thread.join()
    assert seen <= {errno.ENOENT, errno.EAGAIN, errno.ENOTDIR, errno.ELOOP}


def test_eagain_is_retried_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN is tried 128 times, no more; a success on the way is taken."""
    answers = [-errno.EAGAIN] * 127 + [5]
    monkeypatch.setattr(paths, "_open_once", lambda *a: answers.pop(0))
    assert native.openat2(3, "x", 0) == 5
    answers[:] = [-errno.EAGAIN] * 129
    with pytest.raises(KernelError) as caught:
        native.openat2(-1, "x", 0)
    assert caught.value.errno == errno.EAGAIN
    assert len(answers) == 1


@pytest.mark.parametrize(("answer", "for_ever"), [(errno.ENOSYS, True), (errno.EPERM, False)])
def test_forbidden_openat2_is_replaced(
    tree: int, monkeypatch: pytest.MonkeyPatch, answer: int, for_ever: bool
) -> None:
    """ENOSYS means that the call is missing, EPERM that it may be filtered: both times we walk."""
    lib = SimpleNamespace(pyc_openat2=lambda *arguments: -answer)
    monkeypatch.setattr(paths, "lib", lib)
    monkeypatch.setattr(paths, "_missing", False)
    assert opened(tree, "climb2", resolve=ROOT) == "secret"
    assert paths._missing is for_ever


def test_errors_show_the_call(tree: int) -> None:
    """The message is the call as made: fd with its path, flags and resolve by name."""
    with pytest.raises(KernelError) as caught:
        native.openat2(tree, "etc/passwd", os.O_RDONLY, 0, ROOT)
    assert str(caught.value) == (
        f'openat2({tree}<{tree_name(tree)}>, "etc/passwd", O_RDONLY|O_CLOEXEC, RESOLVE_IN_ROOT): '
        "No such file or directory"
    )


def test_nul_in_a_path_is_refused(tree: int) -> None:
    """A NUL would silently cut the path in C."""
    with pytest.raises(InvalidInput, match="NUL"):
        native.openat2(tree, "a\0b", 0)


# ---- memory files, pidfds, ranges ------------------------------------------------------------


def test_memfd_holds_the_data_and_seals() -> None:
    """A sealed memfd can be read from offset 0 and not be changed; an unsealed one can."""
    sealed = native.memfd("x", b"data", seal=True)
    loose = native.memfd("x", b"")
    try:
        assert os.read(sealed, 10) == b"data"
        with pytest.raises(PermissionError):
            os.write(sealed, b"x")
        with pytest.raises(PermissionError):
            os.truncate(sealed, 0)
        assert os.write(loose, b"x") == 1
        assert not os.get_inheritable(sealed)
        assert stat.S_IMODE(os.fstat(sealed).st_mode) & 0o111 == 0
    finally:
        os.close(sealed)
        os.close(loose)


def test_executable_memfd_executes() -> None:
    """With executable=True the file can be a program."""
    fd = native.memfd("true", Path("/bin/true").read_bytes(), seal=True, executable=True)
    try:
        done = subprocess.run([f"/proc/self/fd/{fd}"], pass_fds=(fd,), check=False)
        assert done.returncode == 0
    finally:
        os.close(fd)


def test_pidfd_signals_exactly_one_process() -> None:
    """A pidfd signals its process, and afterwards says ESRCH instead of hitting another one."""
    process = subprocess.Popen(["/bin/sleep", "60"])
    fd = native.pidfd_open(process.pid)
    try:
        native.pidfd_send_signal(fd, signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
        with pytest.raises(KernelError) as caught:
            native.pidfd_send_signal(fd, signal.SIGTERM)
        assert caught.value.errno == errno.ESRCH
    finally:
        os.close(fd)


def test_pidfd_getfd_duplicates() -> None:
    """A descriptor of a child arrives here and shows the same file."""
    reader, writer = os.pipe()
    process = subprocess.Popen(["/bin/sleep", "60"], stdin=reader)
    pidfd = native.pidfd_open(process.pid)
    copy = -1
    try:
        copy = native.pidfd_getfd(pidfd, 0)
        assert os.fstat(copy).st_ino == os.fstat(reader).st_ino
    finally:
        process.kill()
        process.wait()
        for fd in (reader, writer, pidfd, copy):
            os.close(fd)


def test_close_range_in_a_child() -> None:
    """close_range closes what is in the range and leaves the rest."""
    code = """
import os
from pycontain import _native as native
fds = [os.open("/", os.O_PATH) for _ in range(3)]
os.set_inheritable(fds[1], True)
native.close_range(fds[2])
native.close_range(fds[1], fds[1], cloexec=True)
os.fstat(fds[0])
assert not os.get_inheritable(fds[1])
try:
    os.fstat(fds[2])
except OSError:
    print("closed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "closed\n"


def test_inotify_tells_of_a_new_file(tmp_path: Path) -> None:
    """A watched directory's change makes the fd readable; a missing directory is an error."""
    fd = native.inotify_init()
    try:
        with pytest.raises(BlockingIOError):
            os.read(fd, 4096)
        watch = native.inotify_add_watch(fd, tmp_path, 0x100)  # IN_CREATE
        (tmp_path / "new").touch()
        event = os.read(fd, 4096)
        assert event[:4] == watch.to_bytes(4, "little")
        assert event[16:].rstrip(b"\0") == b"new"
        with pytest.raises(KernelError, match=r'inotify_add_watch\(\d+, "/none", 0x100\)'):
            native.inotify_add_watch(fd, "/none", 0x100)
    finally:
        os.close(fd)


def test_fs_magic() -> None:
    """The file system of an fd is told by its number."""
    fd = os.open("/proc", os.O_PATH)
    try:
        assert native.fs_magic(fd) == 0x9FA0
    finally:
        os.close(fd)


# ---- mounts, user namespaces, eBPF (root) ----------------------------------------------------


def test_fs_mount_makes_a_detached_mount() -> None:
    """The options and attributes are there, and the host's mount table knows nothing of it."""
    need_root("fsmount")
    before = Path("/proc/self/mountinfo").read_text()
    fd = native.fs_mount("tmpfs", ["size=64k", "mode=0711"], native.MOUNT_ATTR_NOEXEC)
    try:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o711
        assert os.fstatvfs(fd).f_blocks * os.fstatvfs(fd).f_frsize == 64 * 1024
        assert os.fstatvfs(fd).f_flag & os.ST_NOEXEC
        assert Path("/proc/self/mountinfo").read_text() == before
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("fstype", "options", "text"),
    [
        ("nonesuch", [], r'fsopen\("nonesuch", FSOPEN_CLOEXEC\): No such device'),
        (
            "tmpfs",
            ["mode=700", "size=zz"],
            r'fsconfig\("tmpfs", FSCONFIG_SET_STRING, "size", "zz"\).*\(tmpfs: Bad value for',
        ),
        ("tmpfs", ["bogus"], r'fsconfig\("tmpfs", FSCONFIG_SET_FLAG, "bogus"\).*bogus'),
        ("overlay", ["index=off"], r'fsconfig\("overlay", FSCONFIG_CMD_CREATE\) \[index=off\]'),
        ("tmpfs", ["k" * 300 + "=1"], "FSCONFIG_SET_STRING"),
    ],
)
def test_fs_mount_names_the_step_that_failed(fstype: str, options: list[str], text: str) -> None:
    """The error is about the very option, with the kernel's own explanation."""
    need_root("fsopen")
    with pytest.raises(KernelError, match=text):
        native.fs_mount(fstype, options)


def test_idmapped_mount_shows_mapped_owners() -> None:
    """A user namespace made for a mount shifts the owners of what is in it."""
    need_root("idmapped mounts")
    userns = native.make_userns("0 100000 1000", "0 200000 1000")
    mount = native.fs_mount("tmpfs", [])
    try:
        assert native.fs_magic(userns) == 0x6E736673
        native.mount_setattr(mount, userns_fd=userns)
        assert (os.fstat(mount).st_uid, os.fstat(mount).st_gid) == (100000, 200000)
    finally:
        os.close(mount)
        os.close(userns)


def test_user_namespace_leaves_no_process_behind() -> None:
    """Its helper is reaped, invisible to waitpid(-1), and raises no SIGCHLD, threads or not."""
    need_root("user namespaces")
    children: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda *a: children.append(1))
    fds: list[int] = []
    errors: list[BaseException] = []

    def make() -> None:
        try:
            for _ in range(25):
                fds.append(native.make_userns("0 1000 10", "0 1000 10", deny_setgroups=True))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            threads[0].join(0.001)
    finally:
        for thread in threads:
            thread.join()
        signal.signal(signal.SIGCHLD, before)
        for fd in fds:
            os.close(fd)
    assert (errors, children, len(fds)) == ([], [], 100)
    tasks = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    assert tasks == ""


def test_user_namespace_errors_name_the_map() -> None:
    """A map that the kernel refuses is shown; an empty one is refused before."""
    need_root("user namespaces")
    with pytest.raises(KernelError, match=r'gid_map", "0 0 0"\): Invalid argument'):
        native.make_userns("0 1000 1", "0 0 0")
    with pytest.raises(InvalidInput, match="both maps"):
        native.make_userns("", "0 0 1")


def test_bpf_program_is_verified() -> None:
    """A sound device program loads; the verifier's last words come with the refusal of another."""
    need_root("bpf")
    allow = bytes.fromhex("b7000000010000009500000000000000")  # r0 = 1; exit
    fd = native.bpf_prog_load(native.BPF_PROG_TYPE_CGROUP_DEVICE, allow)
    try:
        with pytest.raises(KernelError, match=r"BPF_PROG_ATTACH, \{\d+</>, type=6"):
            root = os.open("/", os.O_PATH)
            try:
                native.bpf_prog_attach(fd, root, native.BPF_CGROUP_DEVICE)
            finally:
                os.close(root)
    finally:
        os.close(fd)
    with pytest.raises(KernelError, match=r"BPF_PROG_LOAD.*last insn"):
        native.bpf_prog_load(native.BPF_PROG_TYPE_CGROUP_DEVICE, bytes(16))
    with pytest.raises(InvalidInput, match="7 bytes"):
        native.bpf_prog_load(native.BPF_PROG_TYPE_CGROUP_DEVICE, bytes(7))


def test_mount_calls_that_fail_show_their_arguments() -> None:
    """open_tree, move_mount, mount_setattr and umount2 name flags and paths in their errors."""
    fd = os.open("/", os.O_PATH)
    try:
        with pytest.raises(KernelError, match=r'open_tree\(\d+</>, "none", OPEN_TREE_CLOEXEC\)'):
            native.open_tree(fd, "none", 0)
        with pytest.raises(KernelError, match=r'move_mount\(\d+</>, "", AT_FDCWD, "/none", MOVE_M'):
            native.mount_attach(fd, "/none")
        with pytest.raises(KernelError, match=r"mount_setattr\(.*set=MOUNT_ATTR_RDONLY, clear=0"):
            native.mount_setattr(-1, set=native.MOUNT_ATTR_RDONLY)
        with pytest.raises(KernelError, match=r'umount2\("/none", MNT_DETACH\)'):
            native.umount2("/none", native.MNT_DETACH)
    finally:
        os.close(fd)


# ---- messages --------------------------------------------------------------------------------


def test_request_round_trip_sizes() -> None:
    """A request is one struct; an id that does not fit is refused."""
    request = native.encode_request(C.PYC_REQ_RESIZE, b"abc", 5 << 32 | 6)
    assert len(request) == 152
    assert request[8:24] == (5 << 32 | 6).to_bytes(8, "little") + bytes(8)
    assert request[24:28] == b"abc\0"
    with pytest.raises(InvalidInput):
        native.encode_request(C.PYC_REQ_WAIT, b"x" * 128)


def test_record_comes_back_from_live() -> None:
    """What encode_record writes, decode_live reads."""
    record = native.encode_record(
        flags=C.PYC_R_LOG | C.PYC_R_LIFELINE,
        id="web/1",
        state_dir="/run/x",
        log_path="/var/log/ü",
        kill_path="/sys/fs/cgroup/x/cgroup.kill",
        log_max_bytes=1 << 40,
        log_max_files=3,
        timeout_usec=7,
        exit_ops=[(C.PYC_EXIT_READ, b"/sys/x", b"memory"), (C.PYC_EXIT_RMDIR, b"/sys/x", b"")],
    )
    live = native.decode_live(record)
    assert live.id == "web/1"
    assert live.log_path == "/var/log/ü"
    assert live.kill_path == "/sys/fs/cgroup/x/cgroup.kill"
    assert (live.log_max_bytes, live.log_max_files, live.timeout_usec) == (1 << 40, 3, 7)
    assert live.flags == C.PYC_R_LOG | C.PYC_R_LIFELINE
    assert len(record) % 8 == 0


@pytest.mark.parametrize("cut", [0, 7, 103, 110])
def test_cut_off_live_file_is_refused(cut: int) -> None:
    """A `live` file that a crash cut short is an error, never a wrong record."""
    record = native.encode_record(flags=0, id="a", state_dir="/b")
    with pytest.raises(InternalError):
        native.decode_live(record[:cut])


def test_exit_and_reply_are_decoded() -> None:
    """Every field arrives under its own name; another ABI is refused with a hint."""
    ffi = native.ffi
    raw = ffi.new("struct pyc_exit *", {"abi": 1, "kind": C.PYC_REP_EXIT, "code": 1, "status": 3})
    raw.utime_usec, raw.nivcsw, raw.text_bytes = 12, 13, 5
    data = bytes(ffi.buffer(raw)) + b"=a\nb\n"
    assert native.kind_of(data) == C.PYC_REP_EXIT
    ended = native.decode_exit(data)
    assert (ended.code, ended.status, ended.utime_usec, ended.nivcsw) == (1, 3, 12, 13)
    assert ended.text == b"=a\nb\n"
    with pytest.raises(InternalError, match="announces"):
        native.decode_exit(data[:-1])

    reply = ffi.new("struct pyc_reply *", (1, C.PYC_REP_FAILED, C.PYC_STAGE_OP, 4, 23, 2, -1))
    reply.num[1] = 9
    got = native.decode_reply(bytes(ffi.buffer(reply)))
    assert got == native.NativeReply(C.PYC_REP_FAILED, C.PYC_STAGE_OP, 4, 23, 2, -1, (0, 9))
    reply.abi = 2
    with pytest.raises(InternalError, match="another version"):
        native.decode_reply(bytes(ffi.buffer(reply)))


def test_numbers_that_do_not_fit_are_refused() -> None:
    """A number is never cut to the width of its field."""
    op = (C.PYC_OP_UMASK, 0, (0, 0, 0, 0), (-1, -1, -1), (1 << 64, 0, 0))
    with pytest.raises(InvalidInput, match="does not fit"):
        native.encode_plan([op], b"\0", fd_count=0, slot_count=0, clone_flags=0)
    with pytest.raises(InvalidInput, match="does not fit"):
        native.encode_record(flags=1 << 32, id="a", state_dir="/b")
