# Generated from plan.h and sys.c by build.py; `make venv` keeps it up to date.
from typing import Any, Final

class CData:
    def __getitem__(self, index: int) -> int: ...

class FFI:
    def new(self, cdecl: str, init: object = ...) -> Any: ...
    def sizeof(self, cdecl: str) -> int: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def string(self, cdata: Any, maxlen: int = ...) -> bytes: ...
    def memmove(self, dest: Any, src: bytes | Any, n: int) -> None: ...

class Lib:
    PYC_ABI: Final[int]
    PYC_MAX_OPS: Final[int]
    PYC_MAX_EXIT_OPS: Final[int]
    PYC_MAX_SLOTS: Final[int]
    PYC_MAX_BLOB_BYTES: Final[int]
    PYC_MAX_RECORD_BYTES: Final[int]
    PYC_MAX_EXIT_BYTES: Final[int]
    PYC_ID_BYTES: Final[int]
    PYC_MAX_FILTER: Final[int]
    PYC_OP_GATE: Final[int]
    PYC_OP_SETSID: Final[int]
    PYC_OP_SETNS: Final[int]
    PYC_OP_UNSHARE: Final[int]
    PYC_OP_WRITE_FD: Final[int]
    PYC_OP_WRITE_AT: Final[int]
    PYC_OP_SETHOSTNAME: Final[int]
    PYC_OP_SETDOMAINNAME: Final[int]
    PYC_OP_LOOPBACK_UP: Final[int]
    PYC_OP_PROPAGATION: Final[int]
    PYC_OP_FSMOUNT: Final[int]
    PYC_OP_OPEN_TREE: Final[int]
    PYC_OP_MOUNT_SETATTR: Final[int]
    PYC_OP_MOVE_MOUNT: Final[int]
    PYC_OP_ATTACH_ROOT: Final[int]
    PYC_OP_MKDIR: Final[int]
    PYC_OP_MKNOD: Final[int]
    PYC_OP_SYMLINK: Final[int]
    PYC_OP_MASK: Final[int]
    PYC_OP_READONLY: Final[int]
    PYC_OP_PIVOT_ROOT: Final[int]
    PYC_OP_CHDIR: Final[int]
    PYC_OP_STDIO: Final[int]
    PYC_OP_TERMINAL: Final[int]
    PYC_OP_RLIMIT: Final[int]
    PYC_OP_UMASK: Final[int]
    PYC_OP_KEYRING: Final[int]
    PYC_OP_CAP_BOUND: Final[int]
    PYC_OP_SETGROUPS: Final[int]
    PYC_OP_SETUSER: Final[int]
    PYC_OP_CAPSET: Final[int]
    PYC_OP_CAP_AMBIENT: Final[int]
    PYC_OP_NO_NEW_PRIVS: Final[int]
    PYC_OP_SECCOMP: Final[int]
    PYC_OP_EXEC: Final[int]
    PYC_OP_PDEATHSIG: Final[int]
    PYC_OP_OPEN: Final[int]
    PYC_OP_CLOSE: Final[int]
    PYC_OP_FSTYPE: Final[int]
    PYC_OP_PERSONALITY: Final[int]
    PYC_OP_JOIN_TIMENS: Final[int]
    PYC_OP_LAST: Final[int]
    PYC_GATE_MAPPED: Final[int]
    PYC_GATE_START: Final[int]
    PYC_F_OPTIONAL: Final[int]
    PYC_F_RECURSIVE: Final[int]
    PYC_F_MAKE_DIR: Final[int]
    PYC_F_MAKE_FILE: Final[int]
    PYC_F_NO_SYMLINKS: Final[int]
    PYC_F_CONSOLE: Final[int]
    PYC_F_EXIST_OK: Final[int]
    PYC_EXIT_READ: Final[int]
    PYC_EXIT_RMDIR: Final[int]
    PYC_EXIT_WRITE: Final[int]
    PYC_R_LIFELINE: Final[int]
    PYC_R_QUIET: Final[int]
    PYC_R_PARK: Final[int]
    PYC_R_TERMINAL: Final[int]
    PYC_R_LOG: Final[int]
    PYC_R_EPHEMERAL: Final[int]
    PYC_ST_SPAWNING: Final[int]
    PYC_ST_PARKED: Final[int]
    PYC_ST_RUNNING: Final[int]
    PYC_ST_EXITED: Final[int]
    PYC_REPORT_FAILED: Final[int]
    PYC_REPORT_PARKED: Final[int]
    PYC_REPORT_MASTER: Final[int]
    PYC_REQ_SPAWN: Final[int]
    PYC_REQ_START: Final[int]
    PYC_REQ_WAIT: Final[int]
    PYC_REQ_ATTACH: Final[int]
    PYC_REQ_RESIZE: Final[int]
    PYC_REQ_INFO: Final[int]
    PYC_REQ_SHUTDOWN: Final[int]
    PYC_REQ_DEADLINE: Final[int]
    PYC_REP_OK: Final[int]
    PYC_REP_FAILED: Final[int]
    PYC_REP_PARKED: Final[int]
    PYC_REP_SPAWNED: Final[int]
    PYC_REP_EXIT: Final[int]
    PYC_REP_INFO: Final[int]
    PYC_STAGE_REQUEST: Final[int]
    PYC_STAGE_RECORD: Final[int]
    PYC_STAGE_PLAN: Final[int]
    PYC_STAGE_CLONE: Final[int]
    PYC_STAGE_MAP: Final[int]
    PYC_STAGE_OP: Final[int]
    PYC_STAGE_STATE: Final[int]
    PYC_STAGE_DIED: Final[int]
    PYC_X_TIMED_OUT: Final[int]
    PYC_X_OWNER_GONE: Final[int]
    PYC_X_UNKNOWN: Final[int]
    PYC_X_TRUNCATED: Final[int]
    def pyc_version(self) -> CData: ...
    def pyc_blob_check(self, blob: bytes | CData, bytes: int, fds: int, ret_where: CData) -> int: ...
    def pyc_openat2(self, dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int: ...
    def pyc_open_tree(self, dir_fd: int, path: bytes, flags: int) -> int: ...
    def pyc_move_mount(self, from_fd: int, from_path: bytes, to_fd: int, to_path: bytes, flags: int) -> int: ...
    def pyc_fs_mount(self, type: bytes, options: bytes, count: int, attr_flags: int, ret_step: CData, ret_log: CData, log_bytes: int) -> int: ...
    def pyc_mount_setattr(self, dir_fd: int, path: bytes, flags: int, set: int, clear: int, propagation: int, userns_fd: int) -> int: ...
    def pyc_umount2(self, path: bytes, flags: int) -> int: ...
    def pyc_fs_magic(self, fd: int) -> int: ...
    def pyc_pidfd_open(self, pid: int, flags: int) -> int: ...
    def pyc_pidfd_send_signal(self, pidfd: int, signal: int) -> int: ...
    def pyc_pidfd_getfd(self, pidfd: int, fd: int) -> int: ...
    def pyc_close_range(self, first: int, last: int, flags: int) -> int: ...
    def pyc_syncfs(self, fd: int) -> int: ...
    def pyc_inotify_init(self, flags: int) -> int: ...
    def pyc_inotify_add_watch(self, fd: int, path: bytes, mask: int) -> int: ...
    def pyc_memfd(self, name: bytes, data: bytes | CData, bytes: int, flags: int, seals: int) -> int: ...
    def pyc_bpf_prog_load(self, type: int, attach_type: int, insns: bytes | CData, count: int, ret_log: CData, log_bytes: int) -> int: ...
    def pyc_bpf_prog_attach(self, prog_fd: int, target_fd: int, attach_type: int, flags: int) -> int: ...
    def pyc_bpf_prog_detach(self, prog_fd: int, target_fd: int, attach_type: int) -> int: ...
    def pyc_make_userns(self, uid_map: bytes, gid_map: bytes, deny_setgroups: int, ret_step: CData) -> int: ...

ffi: FFI
lib: Lib
