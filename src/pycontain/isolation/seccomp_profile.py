"""What a seccomp profile is, and ours: the system calls that a container may make by default.

Stricter than Docker's default: 64-bit calls only, no io_uring, keyring, userfaultfd, vsock or
kernel-crypto sockets, and a socket family must be named to pass. A call that we refuse on purpose
fails with EPERM; one we do not know (newer than this list) or leave out because programs have a
fallback fails with ENOSYS, so that libc falls back instead of giving up.
Source: seccomp(2), syscalls(2).
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import EAFNOSUPPORT, ENOSYS, EPERM

from pycontain.isolation.capabilities import parse
from pycontain.values import frozen

ALLOW = 0x7FFF0000  # SECCOMP_RET_*: what the kernel does with a call (seccomp(2))
LOG = 0x7FFC0000
TRACE = 0x7FF00000
ERRNO = 0x00050000  # | errno
TRAP = 0x00030000
KILL_THREAD = 0x00000000
KILL_PROCESS = 0x80000000


@frozen
class Arg:
    """A test of one 64-bit argument; for MASKED_EQ `value` is the mask and `value_two` the rest."""

    index: int
    op: str  # SCMP_CMP_*
    value: int
    value_two: int = 0


@frozen
class Rule:
    """What happens to calls by name if all `args` hold and the rule is for this container."""

    names: tuple[str, ...]
    action: int  # SECCOMP_RET_* | data
    args: tuple[Arg, ...] = ()
    caps: int = 0  # only if all of these are in the container's bounding set
    not_caps: int = 0  # not if any of these is
    arches: tuple[str, ...] = ()  # only on these (Go's names)
    not_arches: tuple[str, ...] = ()
    min_kernel: tuple[int, int] = (0, 0)  # only from this version on
    not_min_kernel: tuple[int, int] = (0, 0)  # not from this version on; (0, 0) is never


@frozen
class Denied:
    """Refuses calls whose argument has one of `values` in its low 32 bits; no rule overrides it.

    For arguments that the kernel truncates to 32 bits. Comparing all 64 there can be passed by
    setting a high bit (CVE-2019-7303), and the rules of libseccomp can't say "not these, masked".
    """

    name: str
    index: int
    values: tuple[int, ...]
    action: int


@frozen
class Profile:
    """A whole policy. `architectures` are SCMP_ARCH_* besides the native one."""

    default_action: int
    rules: tuple[Rule, ...]
    architectures: tuple[str, ...] = ()
    denied: tuple[Denied, ...] = ()
    bad_arch_action: int = KILL_PROCESS
    flags: int = 0  # SECCOMP_FILTER_FLAG_*, for whoever installs the filter

    @property
    def relevant_caps(self) -> int:
        """The capabilities that change the filter."""
        mask = 0
        for rule in self.rules:
            mask |= rule.caps | rule.not_caps
        return mask


_FILES = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr
file_getattr file_setattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate
futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch ioctl lchown lgetxattr link linkat listmount listxattr listxattrat
llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat name_to_handle_at
newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir
sendfile setxattr setxattrat splice stat statfs statmount statx symlink symlinkat sync
sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes write writev
"""
_WAITING = """
epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit pause poll ppoll pselect6
restart_syscall select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime
"""
_MEMORY = """
brk madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect
mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
"""
_PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork getcpu getegid geteuid getgid
getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage
getsid gettid getuid get_robust_list get_thread_area ioprio_get ioprio_set kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self pidfd_open pidfd_send_signal
prctl prlimit64 process_mrelease process_vm_readv process_vm_writev ptrace rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_get_priority_max
sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr
sched_setparam sched_setscheduler sched_yield seccomp setfsgid setfsuid setgid setgroups setpgid
setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid set_robust_list
set_thread_area set_tid_address sigaltstack tgkill tkill uprobe uretprobe vfork wait4 waitid
"""
_COMMUNICATION = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg
sendmmsg sendmsg sendto setsockopt shutdown
futex futex_requeue futex_wait futex_waitv futex_wake
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd
semctl semget semop semtimedop shmat shmctl shmdt shmget
"""
_TIME_AND_SYSTEM = """
adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer getrandom
gettimeofday nanosleep setitimer sysinfo time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime times uname
"""

# Allowed if the container holds one of the capabilities, else refused with EPERM.
_BY_CAPABILITY: tuple[tuple[str, str], ...] = (  # (capabilities, names)
    ("SYS_ADMIN", "mount umount umount2 pivot_root mount_setattr move_mount open_tree"),
    ("SYS_ADMIN", "open_tree_attr fsopen fsconfig fsmount fspick unshare setns"),
    ("SYS_ADMIN", "sethostname setdomainname quotactl quotactl_fd fanotify_init fanotify_mark"),
    ("SYS_ADMIN BPF", "bpf"),
    ("SYS_ADMIN PERFMON", "perf_event_open"),
    ("SYS_ADMIN SYSLOG", "syslog"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise userfaultfd"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_TIME", "settimeofday clock_settime stime"),
    ("SYS_MODULE", "init_module finit_module delete_module"),
    ("SYS_BOOT", "reboot kexec_load kexec_file_load"),
    ("SYS_RAWIO", "iopl ioperm"),
    ("SYS_PACCT", "acct"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
)
# Refused with EPERM whatever the container holds: keyrings are only half namespaced, swap is the
# host's.
_NEVER = "add_key keyctl request_key swapon swapoff"
# ENOSYS without the capability: libnuma and friends take it for "no NUMA here".
_NUMA = "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node"

_CLONE_NEW = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_SYS_ADMIN = parse(["SYS_ADMIN"])
# PER_LINUX, PER_LINUX32, each with and without UNAME26, and "ask only". No ADDR_NO_RANDOMIZE,
# READ_IMPLIES_EXEC or another system's personality.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_AF_UNIX, _AF_PACKET = 1, 17
_FAMILIES = (_AF_UNIX, 2, 10, 16)  # AF_INET, AF_INET6, AF_NETLINK
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # typing into, and pasting on, the terminal (CVE-2017-5226)


def _default_rules() -> Iterator[Rule]:
    everyone = _FILES + _WAITING + _MEMORY + _PROCESSES + _COMMUNICATION + _TIME_AND_SYSTEM
    yield Rule(tuple(everyone.split()), ALLOW)
    yield Rule(tuple(_NEVER.split()), ERRNO | EPERM)
    yield Rule(tuple(_NUMA.split()), ALLOW, caps=parse(["SYS_NICE"]))
    for capabilities, names in _BY_CAPABILITY:
        for capability in capabilities.split():
            yield Rule(tuple(names.split()), ALLOW, caps=parse([capability]))
        yield Rule(tuple(names.split()), ERRNO | EPERM, not_caps=parse(capabilities.split()))
    yield from _clone_rules()
    yield from _socket_rules()
    for value in _PERSONALITIES:
        yield Rule(("personality",), ALLOW, (Arg(0, "SCMP_CMP_EQ", value),))


def _clone_rules() -> Iterator[Rule]:
    """No new namespaces; clone3 hides its flags in memory, and libc has clone to fall back to."""
    yield Rule(("clone", "clone3"), ALLOW, caps=_SYS_ADMIN)
    none = (Arg(0, "SCMP_CMP_MASKED_EQ", _CLONE_NEW, 0),)
    yield Rule(("clone",), ALLOW, none, not_caps=_SYS_ADMIN)
    for bit in range(_CLONE_NEW.bit_length()):
        if _CLONE_NEW >> bit & 1:
            some = (Arg(0, "SCMP_CMP_MASKED_EQ", 1 << bit, 1 << bit),)
            yield Rule(("clone",), ERRNO | EPERM, some, not_caps=_SYS_ADMIN)


def _socket_rules() -> Iterator[Rule]:
    """Families by name, compared as a whole; the others look as if the kernel lacked them.

    The kernel loads a family's module when asked for it (AF_ALG was CVE-2026-31431), and reads 32
    bits of the number: "anything but 38" lets 38 | 1 << 32 through.
    """
    for family in _FAMILIES:
        yield Rule(("socket",), ALLOW, (Arg(0, "SCMP_CMP_EQ", family),))
    packet = (Arg(0, "SCMP_CMP_EQ", _AF_PACKET),)
    yield Rule(("socket",), ALLOW, packet, caps=parse(["NET_RAW"]))
    yield Rule(("socket",), ERRNO | EPERM, packet, not_caps=parse(["NET_RAW"]))
    for family in set(range(_AF_PACKET)).difference(_FAMILIES):
        yield Rule(("socket",), ERRNO | EAFNOSUPPORT, (Arg(0, "SCMP_CMP_EQ", family),))
    yield Rule(("socket",), ERRNO | EAFNOSUPPORT, (Arg(0, "SCMP_CMP_GT", _AF_PACKET),))
    yield Rule(("socketpair",), ALLOW, (Arg(0, "SCMP_CMP_EQ", _AF_UNIX),))


UNCONFINED: None = None
DEFAULT = Profile(
    default_action=ERRNO | ENOSYS,
    rules=tuple(_default_rules()),
    denied=(Denied("ioctl", 1, (_TIOCSTI, _TIOCLINUX), ERRNO | EPERM),),
)
