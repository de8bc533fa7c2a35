/* child.c: executes a checked plan between clone3 and execve.
 *
 * Which side am I on? The container's side: this process is in the new namespaces from its first
 * instruction, still with all rights, and nothing of the container's own code has run yet.
 *
 * Rules: raw system calls only (no libc state survives clone3), no memory but the stack and the
 * plan's own private pages, no decisions: a system call that the kernel refuses is reported as
 * (op index, errno) and ends the process. Only the loop reports. What an op may assume was checked
 * by plan_check.c before the clone.
 */
#include "child.h"

#include <asm/resource.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/keyctl.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/socket.h>
#include <linux/sockios.h>
#include <linux/time_types.h>

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC 4U
#endif

struct pyc_rlimit64 { uint64_t soft, hard; };

/* What sendmsg(2) takes on both 64-bit architectures; libc's headers are not for us. */
struct pyc_msghdr {
    void *name;
    uint32_t name_bytes;
    struct iovec *iov;
    size_t iov_count;
    void *control;
    size_t control_bytes;
    uint32_t flags;
};
struct pyc_cmsg { size_t bytes; int level, type; int fd; int pad; };
enum { PYC_SOL_SOCKET = 1, PYC_SCM_RIGHTS = 1, PYC_AF_INET = 2, PYC_SOCK_DGRAM = 2,
       PYC_MSG_NOSIGNAL = 0x4000 };

int pyc_send_report(int socket_fd, const struct pyc_report *report, int fd) {
    struct pyc_report copy = *report;
    struct iovec iov = {&copy, sizeof(copy)};
    struct pyc_cmsg control = {sizeof(size_t) + 2 * sizeof(int) + sizeof(int), PYC_SOL_SOCKET,
                               PYC_SCM_RIGHTS, fd, 0};
    struct pyc_msghdr msg = {0, 0, &iov, 1, 0, 0, 0};
    if (fd >= 0) {
        msg.control = &control;
        msg.control_bytes = sizeof(control);
    }
    long rc = PYC_SYS3(__NR_sendmsg, socket_fd, &msg, PYC_MSG_NOSIGNAL);
    return rc < 0 ? (int)rc : 0;
}

_Noreturn static void leave(int code) {
    for (;;)
        PYC_SYS1(__NR_exit_group, code);
}

/* Closes, for real and not only at exec, every descriptor that the plan does not name. CLOEXEC
 * would not do: a child parked at GATE(START) would hold other containers' sockets open for as
 * long as it waits, and whatever slipped through reaches the container (CVE-2024-21626). */
static int close_others(const struct pyc_ctx *c) {
    int keep[PYC_MAX_SLOTS + 1];
    unsigned n = 0;
    keep[n++] = c->status_fd;
    for (unsigned i = 0; i < c->plan->fd_count; i++) {
        unsigned at = n++;
        for (; at > 0 && keep[at - 1] > c->fds[i]; at--)
            keep[at] = keep[at - 1];
        keep[at] = c->fds[i];
    }
    /* 0, 1 and 2 are the monitor's /dev/null: they stay where the plan gives nothing else. */
    unsigned from = 3;
    for (unsigned i = 0; i < n; i++) {
        unsigned fd = (unsigned)keep[i];
        if (fd > from) {
            long rc = PYC_SYS3(__NR_close_range, from, fd - 1, 0);
            if (rc < 0)
                return (int)rc;
        }
        if (fd >= from)
            from = fd + 1;
    }
    return (int)PYC_SYS3(__NR_close_range, from, ~0U, 0);
}

/* Waits until the monitor says go. End of file means that it is gone, and then so are we: a
 * half-made container that nobody owns must not start. */
static int op_gate(struct pyc_ctx *c, const struct pyc_op *op) {
    char byte;
    long rc;
    if (op->num[0] == PYC_GATE_START) {
        struct pyc_report parked = {PYC_REPORT_PARKED, (uint32_t)(op - (struct pyc_op *)((char *)
                                    c->plan + c->plan->op_offset)), op->code, 0};
        rc = pyc_send_report(c->status_fd, &parked, -1);
        if (rc < 0)
            return (int)rc;
    }
    do
        rc = PYC_SYS3(__NR_read, c->status_fd, &byte, 1);
    while (rc == -EINTR);
    if (rc == 0)
        leave(1);
    return rc < 0 ? (int)rc : 0;
}

static int op_write_fd(struct pyc_ctx *c, const struct pyc_op *op) {
    const char *text = pyc_text(c, op->str[0]);
    long rc = PYC_SYS3(__NR_write, pyc_fd(c, op, 0), text, pyc_strlen(text));
    return rc < 0 ? (int)rc : 0;
}

/* Safe because it only concerns the network namespace that clone3 made. */
static int op_loopback_up(void) {
    struct ifreq request = {.ifr_ifrn.ifrn_name = "lo"};
    long fd = PYC_SYS3(__NR_socket, PYC_AF_INET, PYC_SOCK_DGRAM | O_CLOEXEC, 0);
    if (fd < 0)
        return (int)fd;
    long rc = PYC_SYS3(__NR_ioctl, fd, SIOCGIFFLAGS, &request);
    if (rc >= 0) {
        request.ifr_ifru.ifru_flags = (short)(request.ifr_ifru.ifru_flags | IFF_UP);
        rc = PYC_SYS3(__NR_ioctl, fd, SIOCSIFFLAGS, &request);
    }
    PYC_SYS1(__NR_close, fd);
    return (int)rc;
}

static int op_stdio(struct pyc_ctx *c, const struct pyc_op *op) {
    int from = pyc_fd(c, op, 0), to = (int)op->num[0];
    /* dup3 refuses equal descriptors, and then CLOEXEC would stay: slots lie above 2, so equality
     * can only come from a plan that preserves a descriptor in place. */
    long rc = from == to ? PYC_SYS3(__NR_fcntl, from, F_SETFD, 0)
                         : PYC_SYS3(__NR_dup3, from, to, 0);
    if (rc < 0)
        return (int)rc;
    if (to > c->highest_fd)
        c->highest_fd = to;
    return 0;
}

static int op_rlimit(const struct pyc_op *op) {
    struct pyc_rlimit64 limit = {op->num[1], op->num[2]};
    return (int)PYC_SYS4(__NR_prlimit64, 0, op->num[0], &limit, 0);
}

/* Before SETUSER: lowering the bounding set needs CAP_SETPCAP. */
static int op_cap_bound(const struct pyc_op *op) {
    for (unsigned cap = 0; cap < 64; cap++) {
        if (op->num[0] >> cap & 1)
            continue;
        long rc = PYC_SYS5(__NR_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
        if (rc == -EINVAL) /* past the kernel's last capability */
            return 0;
        if (rc < 0)
            return (int)rc;
    }
    return 0;
}

/* Raw calls: libc's setresuid() takes locks that clone3 left in the parent's state. */
static int op_setuser(const struct pyc_op *op) {
    uint32_t uid = (uint32_t)op->num[0], gid = (uint32_t)op->num[1];
    long rc = PYC_SYS5(__NR_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0);
    if (rc >= 0)
        rc = PYC_SYS3(__NR_setresgid, gid, gid, gid);
    if (rc >= 0)
        rc = PYC_SYS3(__NR_setresuid, uid, uid, uid);
    return (int)rc;
}

static int op_capset(const struct pyc_op *op) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    for (unsigned i = 0; i < 2; i++) {
        data[i].effective = (uint32_t)(op->num[0] >> (32 * i));
        data[i].permitted = (uint32_t)(op->num[1] >> (32 * i));
        data[i].inheritable = (uint32_t)(op->num[2] >> (32 * i));
    }
    return (int)PYC_SYS2(__NR_capset, &head, data);
}

static int op_cap_ambient(const struct pyc_op *op) {
    long rc = PYC_SYS5(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (unsigned cap = 0; rc >= 0 && cap < 64; cap++)
        if (op->num[0] >> cap & 1)
            rc = PYC_SYS5(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
    return (int)rc;
}

/* The last line against a leaked descriptor: what STDIO did not ask for goes at exec. Before the
 * filter, which may forbid close_range. */
static int seal_descriptors(const struct pyc_ctx *c) {
    return (int)PYC_SYS3(__NR_close_range, c->highest_fd + 1, ~0U, CLOSE_RANGE_CLOEXEC);
}

static int op_seccomp(struct pyc_ctx *c, const struct pyc_op *op) {
    struct sock_fprog program = {(unsigned short)op->num[0],
                                 (struct sock_filter *)(void *)pyc_text(c, op->str[0])};
    long rc = seal_descriptors(c);
    if (rc >= 0)
        rc = PYC_SYS3(__NR_seccomp, SECCOMP_SET_MODE_FILTER, op->num[1], &program);
    if (rc < 0)
        return (int)rc;
    if (op->slot[0] >= 0)
        c->fds[op->slot[0]] = (int)rc;
    return 0;
}

static int op_join_timens(void) {
    long fd = PYC_SYS4(__NR_openat, AT_FDCWD, "/proc/self/ns/time_for_children",
                       O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return (int)fd;
    long rc = PYC_SYS2(__NR_setns, fd, CLONE_NEWTIME);
    PYC_SYS1(__NR_close, fd);
    return (int)rc;
}

/* Points an array at the strings of a block; the checker has counted them and sized the array. */
static char **string_array(char **array, char *block, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        array[i] = block;
        block += pyc_strlen(block) + 1;
    }
    array[count] = NULL;
    return array + count + 1;
}

/* Tries the candidates in order, as execvp does: a file that exists but can't be executed (EACCES)
 * is worth more to the user than the ENOENT of a later directory. */
static int op_exec(struct pyc_ctx *c, const struct pyc_op *op) {
    char **argv = (char **)(void *)pyc_text(c, op->str[3]);
    char **envp = string_array(argv, pyc_text(c, op->str[0]), op->num[0]);
    string_array(envp, pyc_text(c, op->str[1]), op->num[1]);
    long rc = seal_descriptors(c);
    if (rc < 0)
        return (int)rc;
    if (op->slot[0] >= 0)
        return (int)PYC_SYS5(__NR_execveat, pyc_fd(c, op, 0), "", argv, envp, AT_EMPTY_PATH);
    long best = -ENOENT;
    char *candidate = pyc_text(c, op->str[2]);
    for (uint64_t i = 0; i < op->num[2]; i++) {
        rc = PYC_SYS3(__NR_execve, candidate, argv, envp);
        if (rc != -ENOENT && rc != -ENOTDIR) {
            best = rc;
            if (rc != -EACCES)
                break;
        }
        candidate += pyc_strlen(candidate) + 1;
    }
    return (int)best;
}

static int run_process_op(struct pyc_ctx *c, const struct pyc_op *op) {
    switch (op->code) {
    case PYC_OP_GATE: return op_gate(c, op);
    case PYC_OP_SETSID: return (int)PYC_SYS0(__NR_setsid);
    case PYC_OP_SETNS: return (int)PYC_SYS2(__NR_setns, pyc_fd(c, op, 0), op->num[0]);
    case PYC_OP_UNSHARE: return (int)PYC_SYS1(__NR_unshare, op->num[0]);
    case PYC_OP_WRITE_FD: return op_write_fd(c, op);
    case PYC_OP_SETHOSTNAME:
        return (int)PYC_SYS2(__NR_sethostname, pyc_text(c, op->str[0]),
                             pyc_strlen(pyc_text(c, op->str[0])));
    case PYC_OP_SETDOMAINNAME:
        return (int)PYC_SYS2(__NR_setdomainname, pyc_text(c, op->str[0]),
                             pyc_strlen(pyc_text(c, op->str[0])));
    case PYC_OP_LOOPBACK_UP: return op_loopback_up();
    case PYC_OP_STDIO: return op_stdio(c, op);
    case PYC_OP_RLIMIT: return op_rlimit(op);
    case PYC_OP_UMASK: return (int)(PYC_SYS1(__NR_umask, op->num[0]) < 0);
    case PYC_OP_KEYRING: {
        long rc = PYC_SYS2(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, pyc_text(c, op->str[0]));
        return rc < 0 && !(op->flags & PYC_F_OPTIONAL && rc == -ENOSYS) ? (int)rc : 0;
    }
    case PYC_OP_CAP_BOUND: return op_cap_bound(op);
    case PYC_OP_SETGROUPS:
        return (int)PYC_SYS2(__NR_setgroups, op->num[0], pyc_text(c, op->str[0]));
    case PYC_OP_SETUSER: return op_setuser(op);
    case PYC_OP_CAPSET: return op_capset(op);
    case PYC_OP_CAP_AMBIENT: return op_cap_ambient(op);
    case PYC_OP_NO_NEW_PRIVS:
        return (int)PYC_SYS5(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    case PYC_OP_SECCOMP: return op_seccomp(c, op);
    case PYC_OP_EXEC: return op_exec(c, op);
    case PYC_OP_PDEATHSIG:
        return (int)PYC_SYS5(__NR_prctl, PR_SET_PDEATHSIG, op->num[0], 0, 0, 0);
    case PYC_OP_CLOSE: {
        long rc = PYC_SYS1(__NR_close, pyc_fd(c, op, 0));
        c->fds[op->slot[0]] = -1;
        return (int)rc;
    }
    case PYC_OP_PERSONALITY: {
        long rc = PYC_SYS1(__NR_personality, op->num[0]);
        return rc < 0 ? (int)rc : 0;
    }
    case PYC_OP_JOIN_TIMENS: return op_join_timens();
    default: return -ENOSYS;
    }
}

static int run_op(struct pyc_ctx *c, const struct pyc_op *op) {
    switch (op->code) {
    case PYC_OP_WRITE_AT: return pyc_op_write_at(c, op);
    case PYC_OP_PROPAGATION: return pyc_op_propagation(c, op);
    case PYC_OP_FSMOUNT: return pyc_op_fsmount(c, op);
    case PYC_OP_OPEN_TREE: return pyc_op_open_tree(c, op);
    case PYC_OP_MOUNT_SETATTR: return pyc_op_mount_setattr(c, op);
    case PYC_OP_MOVE_MOUNT: return pyc_op_move_mount(c, op);
    case PYC_OP_ATTACH_ROOT: return pyc_op_attach_root(c, op);
    case PYC_OP_MKDIR: return pyc_op_mkdir(c, op);
    case PYC_OP_MKNOD: return pyc_op_mknod(c, op);
    case PYC_OP_SYMLINK: return pyc_op_symlink(c, op);
    case PYC_OP_MASK: return pyc_op_mask(c, op);
    case PYC_OP_READONLY: return pyc_op_readonly(c, op);
    case PYC_OP_PIVOT_ROOT: return pyc_op_pivot_root(c, op);
    case PYC_OP_CHDIR: return pyc_op_chdir(c, op);
    case PYC_OP_TERMINAL: return pyc_op_terminal(c, op);
    case PYC_OP_OPEN: return pyc_op_open(c, op);
    case PYC_OP_FSTYPE: return pyc_op_fstype(c, op);
    default: return run_process_op(c, op);
    }
}

_Noreturn void pyc_child(void *plan, int *fds, int status_fd) {
    struct pyc_ctx c = {plan, (char *)plan + ((struct pyc_plan *)plan)->arena_offset,
                        fds, status_fd, 2, 0};
    const struct pyc_op *ops = (const void *)((char *)plan + c.plan->op_offset);
    uint64_t no_signals = 0;
    struct pyc_report failure = {PYC_REPORT_FAILED, 0, 0, 0};

    /* Until exec this process is the monitor's image: nobody may trace it or read its memory. */
    PYC_SYS5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    PYC_SYS5(__NR_prctl, PR_SET_NAME, "pyc:child", 0, 0, 0);
    PYC_SYS1(__NR_umask, 0); /* modes are exactly the plan's; UMASK sets the container's own */
    long rc = close_others(&c);
    /* Handlers are gone (CLONE_CLEAR_SIGHAND), so an unblocked signal can only do its default. */
    if (rc >= 0)
        rc = PYC_SYS4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &no_signals, 0, 8);

    uint32_t i = 0;
    for (; rc >= 0 && i < c.plan->op_count; i++) {
        rc = run_op(&c, &ops[i]);
        if (rc < 0) {
            failure.op_index = i;
            failure.opcode = ops[i].code;
            break;
        }
    }
    failure.err = (int32_t)-rc;
    pyc_send_report(status_fd, &failure, -1);
    leave(127);
}
