/* keeper.c: the first process of the monitor. It takes the lock, makes the socket and the empty
 * mount namespace, and then only keeps: the worker (restarted when it dies), what a dead worker's
 * containers leave behind (it is a subreaper, so they become its children and their exit statuses
 * wait for it), and descriptors that can't be opened again.
 *
 *   pycontain-monitor STATE_ROOT [IDLE_SECONDS]      descriptor 3: gets one byte when ready
 */
#include "monitor.h"

#include <asm/signal.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/time_types.h>
#include <linux/un.h>
#include <linux/wait.h>

enum { READY_FD = 3, AF_UNIX_ = 1, SOCK_SEQPACKET_ = 5, SOCK_CLOEXEC_ = 0x80000,
       SOCK_NONBLOCK_ = 0x800, BACKLOG = 512, LOCK_EX_ = 2, LOCK_NB_ = 4, MNT_DETACH_ = 2,
       WORKER_RESTART_MSEC = 50 };

struct world world;

/* What the worker asks to be kept: fd with the message = keep, none = forget. */
struct store_message { uint32_t index, which; };

void keep_fd(uint32_t index, enum stored which, int fd) {
    struct store_message message = {index, which};
    struct __kernel_timespec patience = {1, 0};
    struct pollfd room = {world.store_fd[1], POLLOUT, 0};
    if (send_message(world.store_fd[1], &message, sizeof message, fd) != -EAGAIN)
        return;
    /* The queue is full: a burst of starts. A keeper that does not run for a second is stopped or
     * gone, and then only crash safety is lost. */
    PYC_SYS5(__NR_ppoll, &room, 1, &patience, 0, 8);
    send_message(world.store_fd[1], &message, sizeof message, fd);
}

static void reset_signals(void) {
    struct sigaction act;
    uint64_t none = 0;
    memset(&act, 0, sizeof act);
    for (int signal = 1; signal <= 64; signal++)
        PYC_SYS4(__NR_rt_sigaction, signal, &act, 0, 8); /* KILL and STOP refuse, fine */
    PYC_SYS4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &none, 0, 8);
}

/* Nothing of whoever started us stays: descriptors, signals, directory, umask. The environment is
 * never passed on, each plan brings its own. */
static void forget_the_client(void) {
    PYC_SYS3(__NR_close_range, READY_FD + 1, ~0U, 0);
    long null_fd = PYC_SYS4(__NR_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
    for (int fd = 0; fd <= 2 && null_fd >= 0; fd++)
        PYC_SYS3(__NR_dup3, null_fd, fd, 0);
    if (null_fd > READY_FD)
        PYC_SYS1(__NR_close, null_fd);
    PYC_SYS3(__NR_fcntl, READY_FD, F_SETFD, FD_CLOEXEC);
    PYC_SYS1(__NR_chdir, "/");
    PYC_SYS1(__NR_umask, 077);
    reset_signals();
}

/* Replaces the mount namespace by four mounts: an empty tmpfs, /proc, /sys. A child copies these
 * and not the host's hundreds, and before exec it sees no host file. procfs and sysfs are mounted
 * whole because the kernel lets a user namespace mount its own only beside visible ones
 * (mount_too_revealing, fs/namespace.c). Unprivileged we can't and stay where we are. */
static void enter_empty_root(const char *state_root) {
    const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    if (PYC_SYS1(__NR_unshare, CLONE_NEWNS) < 0)
        return;
    PYC_SYS5(__NR_mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0);
    /* The state root serves as mount point because it is sure to exist. */
    if (PYC_SYS5(__NR_mount, "pycontain", state_root, "tmpfs", MS_NOSUID | MS_NODEV,
                 "size=64k,nr_inodes=16,mode=0755") < 0)
        return;
    PYC_SYS1(__NR_chdir, state_root);
    static const char *const names[] = {"proc", "sys", "dev", "newroot"};
    for (unsigned i = 0; i < 4; i++) {
        PYC_SYS3(__NR_mkdirat, AT_FDCWD, names[i], 0755);
        PYC_SYS3(__NR_fchmodat, AT_FDCWD, names[i], 0755); /* whatever the umask */
    }
    PYC_SYS5(__NR_mount, "proc", "proc", "proc", safe, 0);
    PYC_SYS5(__NR_mount, "sysfs", "sys", "sysfs", safe, 0);
    if (PYC_SYS2(__NR_pivot_root, ".", ".") >= 0) {
        PYC_SYS2(__NR_umount2, ".", MNT_DETACH_);
    } else { /* an initramfs can't be pivoted away (pivot_root(2), EINVAL) */
        PYC_SYS5(__NR_mount, ".", "/", 0, MS_MOVE, 0);
        PYC_SYS1(__NR_chroot, ".");
    }
    PYC_SYS1(__NR_chdir, "/");
}

/* Only one monitor lives in a state root; the lock goes with its last process. */
static bool take_lock(void) {
    int fd = (int)open_at(world.state_fd, "monitor.lock", O_RDWR | O_CREAT, 0600);
    if (fd < 0)
        leave(2);
    if (PYC_SYS2(__NR_flock, fd, LOCK_EX_ | LOCK_NB_) == 0)
        return true; /* and it stays open */
    close_fd(&fd);
    return false;
}

static bool make_socket(void) {
    struct sockaddr_un address = {AF_UNIX_, "monitor.sock"};
    world.listen_fd = (int)PYC_SYS3(__NR_socket, AF_UNIX_,
                                    SOCK_SEQPACKET_ | SOCK_CLOEXEC_ | SOCK_NONBLOCK_, 0);
    if (world.listen_fd < 0 || PYC_SYS1(__NR_fchdir, world.state_fd) < 0)
        return false;
    PYC_SYS3(__NR_unlinkat, AT_FDCWD, "monitor.sock", 0); /* a dead monitor's: we hold the lock */
    bool made = PYC_SYS3(__NR_bind, world.listen_fd, &address, sizeof address) >= 0 &&
                PYC_SYS3(__NR_fchmodat, AT_FDCWD, "monitor.sock", 0600) >= 0 &&
                PYC_SYS2(__NR_listen, world.listen_fd, BACKLOG) >= 0;
    PYC_SYS1(__NR_chdir, "/");
    return made;
}

static bool make_world(void) {
    const int type = SOCK_SEQPACKET_ | SOCK_CLOEXEC_ | SOCK_NONBLOCK_;
    struct rlimit limit;
    if (PYC_SYS4(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, &limit) >= 0) {
        limit.rlim_cur = limit.rlim_max;
        PYC_SYS4(__NR_prlimit64, 0, RLIMIT_NOFILE, &limit, 0);
    }
    world.keeper_pid = (int)PYC_SYS0(__NR_getpid);
    /* MAP_SHARED: this is what a new worker inherits from a dead one. */
    world.shared = map_memory(4096 + (size_t)MAX_CONTAINERS * SLOT_BYTES,
                              MAP_SHARED | MAP_NORESERVE);
    return world.shared != NULL &&
           PYC_SYS4(__NR_socketpair, AF_UNIX_, type, 0, world.exits_fd) >= 0 &&
           PYC_SYS4(__NR_socketpair, AF_UNIX_, type, 0, world.store_fd) >= 0;
}

static void store_ready(void) {
    struct store_message message;
    for (;;) {
        int fd = -1;
        uint32_t fds = 1;
        long n = receive_message(world.store_fd[0], &message, sizeof message, &fd, &fds, false);
        if (n < 0 && n != -EMSGSIZE)
            return;
        if (n != sizeof message || message.index >= MAX_CONTAINERS ||
            message.which >= STORED_COUNT) {
            close_fd(&fd);
            continue;
        }
        int *kept = &world.stored[message.index][message.which];
        int old = *kept - 1;
        close_fd(&old);
        *kept = fd + 1;
    }
}

static int fork_worker(void) {
    long pid = PYC_SYS5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        uint64_t none = 0;
        PYC_SYS5(__NR_prctl, PR_SET_NAME, "pyc:monitor", 0, 0, 0);
        PYC_SYS4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &none, 0, 8);
        leave(worker_main());
    }
    if (pid < 0)
        leave(3);
    return (int)pid;
}

static void pause_msec(int msec) { PYC_SYS5(__NR_ppoll, 0, 0, &((struct __kernel_timespec){
                                            msec / 1000, msec % 1000 * 1000000L}), 0, 8); }

/* Passes on how process `pid` ended, before it is reaped: from then on its pid means nothing. The
 * queue outlives the worker, which takes a message out only after it has acted on it. */
static void forward_exit(int pid, const struct ending *ending, int worker) {
    struct process_stat st;
    bool executed = read_process_stat(pid, &st) < 0 || (st.flags & PF_FORKNOEXEC_) == 0;
    struct keeper_exit told = {pid, executed, *ending};
    struct ending state;
    while (send_message(world.exits_fd[0], &told, sizeof told, -1) == -EAGAIN) {
        if (wait_pidfd(P_PID, worker, WEXITED | WNOHANG | WNOWAIT, &state) != 0)
            break; /* nobody will empty the queue; such a flood is no container's end */
        pause_msec(10);
    }
}

/* Reaps all that has ended. Returns the worker's fate: 0 = lives, 1 = died, 2 = left properly. */
static int reap_all(int worker) {
    struct ending ending;
    int fate = 0;
    for (;;) {
        long pid = wait_pidfd(P_ALL, 0, WEXITED | WNOHANG | WNOWAIT, &ending);
        if (pid <= 0)
            return fate;
        if (pid == worker)
            fate = ending.code == CLD_EXITED && ending.status == 0 ? 2 : 1;
        else
            forward_exit((int)pid, &ending, worker);
        wait_pidfd(P_PID, (int)pid, WEXITED | WNOHANG, &ending);
    }
}

_Noreturn static void keep(void) {
    uint64_t child_signal = 1ULL << (SIGCHLD - 1);
    PYC_SYS4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &child_signal, 0, 8);
    long signal_fd = PYC_SYS4(__NR_signalfd4, -1, &child_signal, 8, O_CLOEXEC | O_NONBLOCK);
    int worker = fork_worker();
    close_fd(&world.ready_fd);
    uint64_t started = monotonic_usec();
    struct pollfd polled[2] = {{(int)signal_fd, POLLIN, 0}, {world.store_fd[0], POLLIN, 0}};
    for (;;) {
        uint8_t info[128]; /* struct signalfd_siginfo */
        PYC_SYS5(__NR_ppoll, polled, 2, 0, 0, 8);
        PYC_SYS3(__NR_read, signal_fd, info, sizeof info);
        store_ready();
        int fate = reap_all(worker);
        if (fate == 2)
            leave(0);
        if (fate == 1) {
            store_ready(); /* what it asked for with its last breath */
            reap_all(-1);  /* its children are ours now */
            if (monotonic_usec() - started < WORKER_RESTART_MSEC * 1000)
                pause_msec(WORKER_RESTART_MSEC); /* do not spin, whatever kills it */
            world.restarted = true;
            started = monotonic_usec();
            worker = fork_worker();
        }
    }
}

int pyc_main(int argc, char **argv, char **envp) {
    (void)envp;
    if (argc < 2 || argv[1][0] != '/')
        return 2;
    forget_the_client();
    world.ready_fd = READY_FD;
    world.euid = (uint32_t)PYC_SYS0(__NR_geteuid);
    world.idle_usec = (argc > 2 ? pyc_decimal(argv[2]) : 10) * SECOND_USEC;
    world.host_root_fd = (int)PYC_SYS4(__NR_openat, AT_FDCWD, "/", O_PATH | O_CLOEXEC, 0);
    world.state_fd = (int)PYC_SYS4(__NR_openat, AT_FDCWD, argv[1],
                                   O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (world.host_root_fd < 0 || world.state_fd < 0)
        return 2;
    if (!take_lock())
        return 0;
    long pid = PYC_SYS5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid != 0) /* the client reaps this one at once; the keeper is nobody's child */
        return pid < 0 ? 3 : 0;
    PYC_SYS0(__NR_setsid);
    /* /proc/PID of a monitor is root's alone, so that a container process that shares our pid
     * namespace can't reach it. An ordinary user needs his own, to write uid_map. */
    if (world.euid == 0)
        PYC_SYS5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    PYC_SYS5(__NR_prctl, PR_SET_NAME, "pyc:keeper", 0, 0, 0);
    PYC_SYS5(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    enter_empty_root(argv[1]);
    if (!make_world() || !make_socket())
        return 3;
    keep();
}
