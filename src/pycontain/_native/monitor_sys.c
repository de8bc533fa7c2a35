/* monitor_sys.c: system calls whose arguments are structs that no uapi header declares, and the
 * few combinations of calls that several files need. All return >= 0 or -errno. */
#include "monitor.h"

#include <linux/mman.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/uio.h>
#include <linux/wait.h>

/* struct user_msghdr and cmsghdr of include/linux/socket.h, which is not exported. */
struct message { void *name; int name_bytes; struct iovec *iov; size_t iov_count;
                 void *control; size_t control_bytes; unsigned flags; };
struct control { size_t bytes; int level, type; int fds[MAX_MESSAGE_FDS + 1]; };
enum { SOL_SOCKET_ = 1, SCM_RIGHTS_ = 1, MSG_PEEK_ = 2, MSG_TRUNC_ = 0x20, MSG_DONTWAIT_ = 0x40,
       MSG_CTRUNC_ = 8, MSG_NOSIGNAL_ = 0x4000, MSG_CMSG_CLOEXEC_ = 0x40000000 };
#define CONTROL_BYTES(n) (offsetof(struct control, fds) + (n) * sizeof(int))

/* Never blocks: whoever does not read what it is told loses its connection, not our time. */
long send_message(int fd, const void *data, size_t bytes, int passed_fd) {
    struct iovec iov = {(void *)(uintptr_t)data, bytes};
    struct { size_t bytes; int level, type, fd, pad; } control = {
        CONTROL_BYTES(1), SOL_SOCKET_, SCM_RIGHTS_, passed_fd, 0};
    struct message m = {NULL, 0, &iov, 1, NULL, 0, 0};
    if (passed_fd >= 0) {
        m.control = &control;
        m.control_bytes = sizeof control;
    }
    return PYC_SYS3(__NR_sendmsg, fd, &m, MSG_NOSIGNAL_ | MSG_DONTWAIT_);
}

/* Receives one datagram; `inout_fds` is the room in `ret_fds`, then how many came (ours to close).
 * -EMSGSIZE: longer than `bytes`, or more descriptors than there is room for: none is left open. */
long receive_message(int fd, void *data, size_t bytes, int *ret_fds, uint32_t *inout_fds,
                     bool peek) {
    uint32_t room = *inout_fds, count = 0;
    struct iovec iov = {data, bytes};
    struct control control;
    struct message m = {NULL, 0, &iov, 1, NULL, 0, 0};
    *inout_fds = 0;
    if (room > 0) {
        m.control = &control;
        m.control_bytes = CONTROL_BYTES(room);
    }
    control.bytes = 0;
    long n = PYC_SYS3(__NR_recvmsg, fd, &m,
                      MSG_DONTWAIT_ | MSG_CMSG_CLOEXEC_ | (peek ? MSG_PEEK_ : 0));
    if (n < 0)
        return n;
    if (room > 0 && m.control_bytes >= CONTROL_BYTES(1) && control.level == SOL_SOCKET_ &&
        control.type == SCM_RIGHTS_) {
        count = (uint32_t)((control.bytes - CONTROL_BYTES(0)) / sizeof(int));
        memcpy(ret_fds, control.fds, count * sizeof(int));
    }
    if ((m.flags & (MSG_TRUNC_ | MSG_CTRUNC_)) != 0) {
        for (uint32_t i = 0; i < count; i++)
            PYC_SYS1(__NR_close, ret_fds[i]);
        return -EMSGSIZE;
    }
    *inout_fds = count;
    return n;
}

/* Opens a host path as the host sees it: absolute symbolic links too resolve from the host's "/",
 * and not from our empty one. */
long open_host(const char *path, uint64_t flags, uint64_t mode) {
    struct open_how how = {flags | O_CLOEXEC, mode, RESOLVE_IN_ROOT};
    long fd;
    do
        fd = PYC_SYS4(__NR_openat2, world.host_root_fd, path, &how, sizeof how);
    while (fd == -EAGAIN || fd == -EINTR); /* EAGAIN: a rename raced with ".." (openat2(2)) */
    return fd;
}

long open_at(int dir_fd, const char *name, int flags, int mode) {
    return PYC_SYS4(__NR_openat, dir_fd, name, flags | O_CLOEXEC | O_NOFOLLOW, mode);
}

long write_all(int fd, const void *data, size_t bytes) {
    const uint8_t *at = data;
    while (bytes > 0) {
        long n = PYC_SYS3(__NR_write, fd, at, bytes);
        if (n == -EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? n : -EIO;
        at += n;
        bytes -= (size_t)n;
    }
    return 0;
}

long write_host_file(const char *path, const char *text) {
    int fd = (int)open_host(path, O_WRONLY, 0);
    if (fd < 0)
        return fd;
    long rc = write_all(fd, text, strlen(text));
    close_fd(&fd);
    return rc;
}

/* waitid(2) with the rusage that the raw call has as its fifth argument. Returns the pid, 0 when
 * WNOHANG found nothing. */
long wait_pidfd(int id_type, int id, int options, struct ending *ret) {
    struct siginfo info;
    memset(&info, 0, sizeof info);
    long rc;
    do
        rc = PYC_SYS5(__NR_waitid, id_type, id, &info, options, &ret->usage);
    while (rc == -EINTR);
    if (rc < 0)
        return rc;
    ret->code = info.si_code;
    ret->status = info.si_status;
    ret->known = true;
    return info.si_pid;
}

long monitor_pidfd_open(int pid) { return PYC_SYS2(__NR_pidfd_open, pid, 0); }

void close_fd(int *fd) {
    if (*fd >= 0)
        PYC_SYS1(__NR_close, *fd);
    *fd = -1;
}

void *map_memory(size_t bytes, int extra_flags) {
    long at = PYC_SYS6(__NR_mmap, 0, bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | extra_flags,
                       -1, 0);
    return at < 0 && at > -4096 ? NULL : (void *)at;
}

_Noreturn void leave(int code) {
    for (;;)
        PYC_SYS1(__NR_exit_group, code);
}
