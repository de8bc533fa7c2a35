/* sys.c: system calls that Python lacks, for the CFFI extension (hosted, inside a threaded host
 * program). Thin: one call each where possible, no policy, no fallback; -errno on failure.
 *
 * CFFI releases the GIL around every function here. Every returned fd is O_CLOEXEC and the
 * caller's. Nothing here touches libc's errno: the calls are raw (sys.h).
 */
#include "plan.h"
#include "sys.h"

#include <asm/fcntl.h>
#include <asm/signal.h>
#include <asm/statfs.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/fcntl.h>
#include <linux/memfd.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/wait.h>

/* CFFI-BEGIN */
const char *pyc_version(void);
/* Both parts of a SPAWN memfd. Returns 0 or -EINVAL; ret_where: stage, op index, line. */
int pyc_blob_check(const void *blob, uint64_t bytes, uint32_t fds, uint32_t *ret_where);
int pyc_openat2(int dir_fd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int pyc_open_tree(int dir_fd, const char *path, uint32_t flags);
int pyc_move_mount(int from_fd, const char *from_path, int to_fd, const char *to_path,
                   uint32_t flags);
/* `options`: count strings "key[=value]", each with its NUL. *ret_step: 0 fsopen, 1..count
 * fsconfig of that option, count + 1 CREATE, count + 2 fsmount. ret_log: the kernel's text. */
int pyc_fs_mount(const char *type, const char *options, uint32_t count, uint32_t attr_flags,
                 uint32_t *ret_step, char *ret_log, uint32_t log_bytes);
int pyc_mount_setattr(int dir_fd, const char *path, uint32_t flags, uint64_t set, uint64_t clear,
                      uint64_t propagation, int userns_fd);
int pyc_umount2(const char *path, int flags);
/* The magic number of the file system that fd lies on (statfs(2)), or -errno. */
int64_t pyc_fs_magic(int fd);
int pyc_pidfd_open(int pid, uint32_t flags);
int pyc_pidfd_send_signal(int pidfd, int signal);
int pyc_pidfd_getfd(int pidfd, int fd);
int pyc_close_range(uint32_t first, uint32_t last, uint32_t flags);
int pyc_syncfs(int fd);
int pyc_inotify_init(uint32_t flags);
int pyc_inotify_add_watch(int fd, const char *path, uint32_t mask);
/* flags: MFD_*; seals: F_SEAL_*, 0 = none. The offset is at 0 afterwards. */
int pyc_memfd(const char *name, const void *data, uint64_t bytes, uint32_t flags, uint32_t seals);
int pyc_bpf_prog_load(uint32_t type, uint32_t attach_type, const void *insns, uint32_t count,
                      char *ret_log, uint32_t log_bytes);
int pyc_bpf_prog_attach(int prog_fd, int target_fd, uint32_t attach_type, uint32_t flags);
int pyc_bpf_prog_detach(int prog_fd, int target_fd, uint32_t attach_type);
/* *ret_step: 0 clone, 1 open of /proc/PID/..., 2 setgroups, 3 uid_map, 4 gid_map. */
int pyc_make_userns(const char *uid_map, const char *gid_map, int deny_setgroups,
                    uint32_t *ret_step);
/* CFFI-END */

#ifndef MOVE_MOUNT_F_EMPTY_PATH
#error "linux/mount.h is older than Linux 5.12"
#endif

const char *pyc_version(void) { return PYC_VERSION; }

int pyc_blob_check(const void *blob, uint64_t bytes, uint32_t fds, uint32_t *ret_where) {
    struct pyc_refusal refusal = {0, 0};
    uint32_t record_bytes;
    int r = pyc_record_check(blob, bytes, &refusal);

    ret_where[0] = PYC_STAGE_RECORD;
    if (r == 0) {
        record_bytes = ((const struct pyc_record *)blob)->record_bytes;
        r = pyc_plan_check((const char *)blob + record_bytes, bytes - record_bytes, fds, &refusal);
        ret_where[0] = PYC_STAGE_PLAN;
    }
    ret_where[1] = refusal.op_index;
    ret_where[2] = refusal.line;
    return r;
}

int pyc_openat2(int dir_fd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};

    return (int)PYC_SYS4(__NR_openat2, dir_fd, path, &how, sizeof how);
}

int pyc_open_tree(int dir_fd, const char *path, uint32_t flags) {
    return (int)PYC_SYS3(__NR_open_tree, dir_fd, path, flags);
}

int pyc_move_mount(int from_fd, const char *from_path, int to_fd, const char *to_path,
                   uint32_t flags) {
    return (int)PYC_SYS5(__NR_move_mount, from_fd, from_path, to_fd, to_path, flags);
}

static int fs_option(int fs, const char *option) {
    char key[256]; /* the kernel's own limit (fs/fsopen.c: strndup_user(_key, 256)) */
    size_t n = 0;

    while (option[n] != '\0' && option[n] != '=') {
        if (n == sizeof key - 1)
            return -EINVAL;
        key[n] = option[n];
        n++;
    }
    key[n] = '\0';
    if (option[n] == '\0')
        return (int)PYC_SYS5(__NR_fsconfig, fs, FSCONFIG_SET_FLAG, key, NULL, 0);
    return (int)PYC_SYS5(__NR_fsconfig, fs, FSCONFIG_SET_STRING, key, option + n + 1, 0);
}

/* Each read of a filesystem context returns one message; ENODATA ends them. */
static void fs_log(int fs, char *log, uint32_t bytes) {
    uint32_t used = 0;
    long n;

    while (used + 1 < bytes) {
        n = PYC_SYS3(__NR_read, fs, log + used, bytes - used - 1);
        if (n <= 0)
            break;
        used += (uint32_t)n;
    }
    log[used] = '\0';
}

int pyc_fs_mount(const char *type, const char *options, uint32_t count, uint32_t attr_flags,
                 uint32_t *ret_step, char *ret_log, uint32_t log_bytes) {
    int fs, r = 0;
    uint32_t step = 0;

    *ret_step = 0;
    ret_log[0] = '\0';
    fs = (int)PYC_SYS2(__NR_fsopen, type, FSOPEN_CLOEXEC);
    if (fs < 0)
        return fs;
    while (r >= 0 && step < count) {
        *ret_step = ++step;
        r = fs_option(fs, options);
        options += pyc_strlen(options) + 1;
    }
    if (r >= 0) {
        *ret_step = count + 1;
        r = (int)PYC_SYS5(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
    }
    if (r >= 0) {
        *ret_step = count + 2;
        r = (int)PYC_SYS3(__NR_fsmount, fs, FSMOUNT_CLOEXEC, attr_flags);
    }
    if (r < 0)
        fs_log(fs, ret_log, log_bytes);
    PYC_SYS1(__NR_close, fs);
    return r;
}

int pyc_mount_setattr(int dir_fd, const char *path, uint32_t flags, uint64_t set, uint64_t clear,
                      uint64_t propagation, int userns_fd) {
    struct mount_attr attr = {
        .attr_set = set,
        .attr_clr = clear,
        .propagation = propagation,
        .userns_fd = userns_fd < 0 ? 0 : (uint64_t)userns_fd,
    };

    return (int)PYC_SYS5(__NR_mount_setattr, dir_fd, path, flags, &attr, sizeof attr);
}

int pyc_umount2(const char *path, int flags) {
    return (int)PYC_SYS2(__NR_umount2, path, flags);
}

int64_t pyc_fs_magic(int fd) {
    struct statfs fs;
    long r = PYC_SYS2(__NR_fstatfs, fd, &fs);

    return r < 0 ? r : (int64_t)(uint32_t)fs.f_type;
}

int pyc_pidfd_open(int pid, uint32_t flags) {
    return (int)PYC_SYS2(__NR_pidfd_open, pid, flags);
}

int pyc_pidfd_send_signal(int pidfd, int signal) {
    return (int)PYC_SYS4(__NR_pidfd_send_signal, pidfd, signal, NULL, 0);
}

int pyc_pidfd_getfd(int pidfd, int fd) {
    return (int)PYC_SYS3(__NR_pidfd_getfd, pidfd, fd, 0);
}

int pyc_close_range(uint32_t first, uint32_t last, uint32_t flags) {
    return (int)PYC_SYS3(__NR_close_range, first, last, flags);
}

int pyc_syncfs(int fd) { return (int)PYC_SYS1(__NR_syncfs, fd); }

int pyc_inotify_init(uint32_t flags) { return (int)PYC_SYS1(__NR_inotify_init1, flags); }

int pyc_inotify_add_watch(int fd, const char *path, uint32_t mask) {
    return (int)PYC_SYS3(__NR_inotify_add_watch, fd, path, mask);
}

int pyc_memfd(const char *name, const void *data, uint64_t bytes, uint32_t flags, uint32_t seals) {
    uint64_t done = 0;
    long n = 0;
    int fd = (int)PYC_SYS2(__NR_memfd_create, name, flags | MFD_CLOEXEC);

    if (fd < 0)
        return fd;
    while (n >= 0 && done < bytes) {
        /* pwrite: the offset stays at 0 for whoever reads the fd. */
        n = PYC_SYS4(__NR_pwrite64, fd, (const char *)data + done, bytes - done, done);
        done += n > 0 ? (uint64_t)n : 0;
    }
    if (n >= 0 && seals != 0)
        n = PYC_SYS3(__NR_fcntl, fd, F_ADD_SEALS, seals);
    if (n < 0) {
        PYC_SYS1(__NR_close, fd);
        return (int)n;
    }
    return fd;
}

int pyc_bpf_prog_load(uint32_t type, uint32_t attach_type, const void *insns, uint32_t count,
                      char *ret_log, uint32_t log_bytes) {
    union bpf_attr attr;
    int fd;

    __builtin_memset(&attr, 0, sizeof attr);
    attr.prog_type = type;
    attr.expected_attach_type = attach_type;
    attr.insns = (uint64_t)(uintptr_t)insns;
    attr.insn_cnt = count;
    attr.license = (uint64_t)(uintptr_t) "Apache-2.0";
    ret_log[0] = '\0';
    fd = (int)PYC_SYS3(__NR_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
    if (fd >= 0 || log_bytes < 128)
        return fd;
    /* Again for the verifier's text: asked for at once, a full log would fail a good program. */
    attr.log_buf = (uint64_t)(uintptr_t)ret_log;
    attr.log_size = log_bytes;
    attr.log_level = 1;
    return (int)PYC_SYS3(__NR_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
}

int pyc_bpf_prog_attach(int prog_fd, int target_fd, uint32_t attach_type, uint32_t flags) {
    union bpf_attr attr;

    __builtin_memset(&attr, 0, sizeof attr);
    attr.target_fd = (uint32_t)target_fd;
    attr.attach_bpf_fd = (uint32_t)prog_fd;
    attr.attach_type = attach_type;
    attr.attach_flags = flags;
    return (int)PYC_SYS3(__NR_bpf, BPF_PROG_ATTACH, &attr, sizeof attr);
}

int pyc_bpf_prog_detach(int prog_fd, int target_fd, uint32_t attach_type) {
    union bpf_attr attr;

    __builtin_memset(&attr, 0, sizeof attr);
    attr.target_fd = (uint32_t)target_fd;
    attr.attach_bpf_fd = (uint32_t)prog_fd;
    attr.attach_type = attach_type;
    return (int)PYC_SYS3(__NR_bpf, BPF_PROG_DETACH, &attr, sizeof attr);
}

/* ---- a user namespace without a process of ours in it ---------------------------------------
 * A user namespace is made by clone or unshare only, and unshare refuses in a threaded program.
 * So: a process that shares our memory (no page tables are copied, however big the host program
 * is) and never touches it. Its whole life is the assembly below: it needs no stack, no TLS, no
 * libc; every signal is blocked (its handlers would be the host program's, in shared memory), and
 * its exit signal is 0: the host's waitpid(-1) and SIGCHLD handler never see it.
 */
static const struct { int64_t sec, nsec; } holder_life = {30, 0};

#define HOLDER_CLONE_FLAGS (CLONE_VM | CLONE_NEWUSER | CLONE_PIDFD)

static long clone_holder(int *ret_pidfd) {
#if defined(__x86_64__)
    long ret;
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;
    __asm__ volatile(
        "syscall\n\t"
        "test %%rax, %%rax\n\t"
        "jnz 1f\n\t"
        "mov %[prctl], %%eax\n\t" /* die with the thread that made us */
        "mov $1, %%edi\n\t"
        "mov $9, %%esi\n\t"
        "syscall\n\t"
        "mov %[nanosleep], %%eax\n\t" /* and soon in any case: it may have died before that */
        "lea %[life], %%rdi\n\t"
        "xor %%esi, %%esi\n\t"
        "syscall\n\t"
        "mov %[exit], %%eax\n\t"
        "xor %%edi, %%edi\n\t"
        "syscall\n\t"
        "ud2\n"
        "1:"
        : "=a"(ret)
        : "a"((long)__NR_clone), "D"((long)HOLDER_CLONE_FLAGS), "S"(0L), "d"(ret_pidfd), "r"(r10),
          "r"(r8), [prctl] "i"(__NR_prctl), [nanosleep] "i"(__NR_nanosleep),
          [exit] "i"(__NR_exit_group), [life] "m"(holder_life)
        : "rcx", "r11", "memory");
    return ret;
#else
    register long x8 __asm__("x8") = __NR_clone;
    register long x0 __asm__("x0") = HOLDER_CLONE_FLAGS;
    register long x1 __asm__("x1") = 0;
    register long x2 __asm__("x2") = (long)ret_pidfd;
    register long x3 __asm__("x3") = 0;
    register long x4 __asm__("x4") = 0;
    register long x9 __asm__("x9") = (long)&holder_life;
    __asm__ volatile(
        "svc 0\n\t"
        "cbnz x0, 1f\n\t"
        "mov x8, %[prctl]\n\t"
        "mov x0, 1\n\t"
        "mov x1, 9\n\t"
        "svc 0\n\t"
        "mov x8, %[nanosleep]\n\t"
        "mov x0, x9\n\t"
        "mov x1, 0\n\t"
        "svc 0\n\t"
        "mov x8, %[exit]\n\t"
        "mov x0, 0\n\t"
        "svc 0\n\t"
        "brk 1\n"
        "1:"
        : "+r"(x0)
        : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x9), [prctl] "i"(__NR_prctl),
          [nanosleep] "i"(__NR_nanosleep), [exit] "i"(__NR_exit_group)
        : "memory", "cc");
    return x0;
#endif
}

/* "/proc/PID/<leaf>" opened O_CLOEXEC. */
static int open_of_pid(long pid, const char *leaf, int flags) {
    char path[64] = "/proc/", digits[20];
    size_t n = 6, d = 0, i;

    for (; pid > 0; pid /= 10)
        digits[d++] = (char)('0' + pid % 10);
    while (d > 0)
        path[n++] = digits[--d];
    path[n++] = '/';
    for (i = 0; i <= pyc_strlen(leaf); i++)
        path[n++] = leaf[i];
    return (int)PYC_SYS4(__NR_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0);
}

static int write_of_pid(long pid, const char *leaf, const char *text) {
    long r;
    int fd = open_of_pid(pid, leaf, O_WRONLY);

    if (fd < 0)
        return fd;
    r = PYC_SYS3(__NR_write, fd, text, pyc_strlen(text)); /* a map is one write or an error */
    PYC_SYS1(__NR_close, fd);
    return r < 0 ? (int)r : 0;
}

static int map_holder(long pid, int pidfd, const char *uid_map, const char *gid_map, int deny,
                      uint32_t *ret_step) {
    int r, userns = open_of_pid(pid, "ns/user", O_RDONLY);

    *ret_step = 1;
    if (userns < 0)
        return userns;
    r = deny ? write_of_pid(pid, "setgroups", "deny") : 0;
    if (r == 0) {
        *ret_step = 3;
        r = write_of_pid(pid, "uid_map", uid_map);
    } else {
        *ret_step = 2;
    }
    if (r == 0) {
        *ret_step = 4;
        r = write_of_pid(pid, "gid_map", gid_map);
    }
    /* Still ours: so /proc/PID was it and no later process with its number. */
    if (r == 0)
        r = (int)PYC_SYS4(__NR_pidfd_send_signal, pidfd, 0, NULL, 0);
    if (r == 0)
        return userns;
    PYC_SYS1(__NR_close, userns);
    return r;
}

int pyc_make_userns(const char *uid_map, const char *gid_map, int deny_setgroups,
                    uint32_t *ret_step) {
    uint64_t all = ~0ULL, before = 0;
    int r, pidfd = -1;
    long pid;

    *ret_step = 0;
    PYC_SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
    pid = clone_holder(&pidfd);
    if (pid < 0) {
        r = (int)pid;
    } else {
        r = map_holder(pid, pidfd, uid_map, gid_map, deny_setgroups, ret_step);
        PYC_SYS4(__NR_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
        PYC_SYS5(__NR_waitid, 3 /* P_PIDFD */, pidfd, NULL, 4 /* WEXITED */ | __WALL, NULL);
        PYC_SYS1(__NR_close, pidfd);
    }
    PYC_SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
    return r;
}
