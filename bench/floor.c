/* floor.c: the bare floor of a container start. It makes the kernel calls that pycontain's launch
 * path makes and nothing else: no socket, no plan, no state directory, no Python. A start cannot be
 * cheaper than this on a machine, so bench/launch.py reports pycontain as a multiple of it.
 *
 *   floor --rootfs DIR --cgroup DIR --scratch DIR --filter FILE [--host-mounts] [--trace]
 *
 * Every line on stdin runs one container (/true of the rootfs) and prints its microseconds, so that
 * the caller can interleave it with its peers. --host-mounts clones from the host's own mount
 * namespace instead of an empty one; --trace prints where the time goes (to stderr). FILE holds
 * struct sock_filter[]; it must be the real one, for its shape decides what installing it costs (the
 * kernel walks it once for every system call: 400 comparisons in a row take 1 ms, a tree 0.1).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MNT_DETACH 2
#define MAX_INSTRUCTIONS 4096
#define KEPT_CAPABILITIES 0x800405fbULL /* podman's eleven */

extern long syscall(long number, ...);
int setns(int fd, int flags);
int unshare(int flags);
int umount2(const char *path, int flags);
int mount(const char *, const char *, const char *, unsigned long, const void *);

static const char *rootfs, *cgroup_parent, *scratch;
static int host_mounts, trace;

static void die(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    _exit(120);
}

static long must(long result, const char *what) {
    if (result < 0)
        die(what);
    return result;
}

static uint64_t now_nsec(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void mark(const char *what) {
    static uint64_t last;
    uint64_t now = now_nsec();
    if (trace)
        fprintf(stderr, "%8.1f us  %s\n", (double)(now - last) / 1e3, what);
    last = now_nsec();
}

/* ---- mounts ---------------------------------------------------------------------------------- */

static int new_mount(const char *type, const char *const *options, unsigned attributes) {
    int fs = (int)must(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC), type);
    for (; options && options[0]; options += 2)
        if (options[1])
            must(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, options[0], options[1], 0),
                 options[0]);
        else
            must(syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, options[0], NULL, 0), options[0]);
    must(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0), type);
    int mount_fd = (int)must(syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attributes), type);
    close(fs);
    return mount_fd;
}

static int open_in(int root, const char *path) {
    struct open_how how = {.flags = O_PATH | O_CLOEXEC,
                           .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

static void attach(int root, int mount_fd, const char *path) {
    int target = (int)must(open_in(root, path), path);
    must(syscall(SYS_move_mount, mount_fd, "", target, "",
                 MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH), path);
    close(target);
}

static void mount_at(int root, const char *path, const char *type, const char *const *options,
                     unsigned attributes) {
    int mount_fd = new_mount(type, options, attributes);
    attach(root, mount_fd, path);
    close(mount_fd);
}

static void make_devices(int root) {
    static const struct { const char *name; unsigned minor_id, major_id; } nodes[] = {
        {"null", 3, 1}, {"zero", 5, 1}, {"full", 7, 1}, {"random", 8, 1}, {"urandom", 9, 1},
        {"tty", 0, 5},
    };
    static const char *const links[][2] = {
        {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
        {"/proc/self/fd/2", "stderr"}, {"/proc/kcore", "core"}, {"pts/ptmx", "ptmx"},
    };
    int dev = (int)must(open_in(root, "/dev"), "/dev");
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        must(mknodat(dev, nodes[i].name, S_IFCHR | 0666,
                     makedev(nodes[i].major_id, nodes[i].minor_id)), nodes[i].name);
        must(fchmodat(dev, nodes[i].name, 0666, 0), nodes[i].name);
    }
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        must(symlinkat(links[i][0], dev, links[i][1]), links[i][1]);
    must(mkdirat(dev, "pts", 0755), "pts");
    must(mkdirat(dev, "shm", 0755), "shm");
    must(mkdirat(dev, "mqueue", 0755), "mqueue");
    close(dev);
}

static void hide(int root) {
    static const char *const masked[] = {
        "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
        "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
        "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux",
    };
    static const char *const readonly[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                                           "/proc/sysrq-trigger"};
    static const char *const tiny[] = {"nr_blocks", "1", "nr_inodes", "1", NULL};
    int empty = new_mount("tmpfs", tiny, MOUNT_ATTR_RDONLY);
    for (size_t i = 0; i < sizeof masked / sizeof *masked; i++) {
        struct stat st;
        int target = open_in(root, masked[i]);
        if (target < 0)
            continue;
        must(fstat(target, &st), masked[i]);
        int source = S_ISDIR(st.st_mode) ? empty : (int)must(open_in(root, "/dev/null"), "null");
        int tree = (int)must(syscall(SYS_open_tree, source, "", OPEN_TREE_CLONE |
                                     OPEN_TREE_CLOEXEC | AT_EMPTY_PATH), masked[i]);
        must(syscall(SYS_move_mount, tree, "", target, "",
                     MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH), masked[i]);
        close(tree);
        close(target);
        if (source != empty)
            close(source);
    }
    close(empty);
    for (size_t i = 0; i < sizeof readonly / sizeof *readonly; i++) {
        struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY};
        int target = open_in(root, readonly[i]);
        if (target < 0)
            continue;
        int tree = (int)must(syscall(SYS_open_tree, target, "", OPEN_TREE_CLONE |
                                     OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE),
                             readonly[i]);
        must(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes,
                     sizeof attributes), readonly[i]);
        must(syscall(SYS_move_mount, tree, "", target, "",
                     MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH), readonly[i]);
        close(tree);
        close(target);
    }
}

static int make_overlay(const char *upper, const char *work) {
    const char *options[] = {"lowerdir", rootfs, "upperdir", upper, "workdir", work, NULL};
    return new_mount("overlay", options, 0);
}

/* A mount namespace of four mounts, so that a clone need not copy the host's. */
static int enter_empty_mounts(void) {
    must(unshare(CLONE_NEWNS), "unshare");
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
    int root = new_mount("tmpfs", NULL, 0);
    must(mkdirat(root, "proc", 0755), "proc");
    must(mkdirat(root, "sys", 0755), "sys");
    must(mkdirat(root, "newroot", 0755), "newroot");
    must(syscall(SYS_move_mount, root, "", AT_FDCWD, "/tmp", MOVE_MOUNT_F_EMPTY_PATH), "/tmp");
    mount_at(root, "/proc", "proc", NULL, 0);
    mount_at(root, "/sys", "sysfs", NULL, 0);
    must(fchdir(root), "fchdir");
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "umount");
    must(chdir("/"), "chdir");
    close(root);
    return (int)must(open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC), "ns/mnt");
}

/* ---- the child ------------------------------------------------------------------------------- */

static struct sock_filter filter[MAX_INSTRUCTIONS];
static unsigned short filter_instructions;

static void read_filter(const char *path) {
    int fd = (int)must(open(path, O_RDONLY | O_CLOEXEC), path);
    filter_instructions = (unsigned short)(must(read(fd, filter, sizeof filter), path) / 8);
    close(fd);
}

static void mount_everything(int root) {
    static const char *const dev[] = {"mode", "755", "size", "65536k", NULL};
    static const char *const pts[] = {"newinstance", NULL, "ptmxmode", "0666", "mode", "0620",
                                      "gid", "5", NULL};
    static const char *const shm[] = {"mode", "1777", "size", "65536k", NULL};
    const unsigned locked = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    mount_at(root, "/proc", "proc", NULL, locked);
    mount_at(root, "/dev", "tmpfs", dev, MOUNT_ATTR_NOSUID);
    make_devices(root);
    mount_at(root, "/dev/pts", "devpts", pts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    mount_at(root, "/dev/shm", "tmpfs", shm, locked);
    mount_at(root, "/dev/mqueue", "mqueue", NULL, locked);
    mount_at(root, "/sys", "sysfs", NULL, locked | MOUNT_ATTR_RDONLY);
    mount_at(root, "/sys/fs/cgroup", "cgroup2", NULL, locked | MOUNT_ATTR_RDONLY);
}

static void loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int sock = (int)must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    must(ioctl(sock, SIOCSIFFLAGS, &request), "SIOCSIFFLAGS");
    close(sock);
}

static void drop_privileges(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {
        {.effective = (uint32_t)KEPT_CAPABILITIES, .permitted = (uint32_t)KEPT_CAPABILITIES}};
    struct sock_fprog program = {filter_instructions, filter};
    for (int cap = 0; cap <= 40; cap++)
        if (!(KEPT_CAPABILITIES >> cap & 1))
            must(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), "capbset");
    must(syscall(SYS_setgroups, 0, NULL), "setgroups");
    must(syscall(SYS_setresgid, 0, 0, 0), "setresgid");
    must(syscall(SYS_setresuid, 0, 0, 0), "setresuid");
    must(syscall(SYS_capset, &header, data), "capset");
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "seccomp");
}

static void __attribute__((noreturn)) child(int overlay) {
    static const char *const argv[] = {"/true", NULL};
    static const char *const envp[] = {"PATH=/bin", NULL};
    setsid();
    must(sethostname("floor", 5), "sethostname");
    loopback_up();
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "propagation");
    must(syscall(SYS_move_mount, overlay, "", AT_FDCWD, host_mounts ? "/mnt" : "/newroot",
                 MOVE_MOUNT_F_EMPTY_PATH), "newroot");
    mount_everything(overlay);
    hide(overlay);
    must(fchdir(overlay), "fchdir");
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "umount2");
    must(chdir("/"), "chdir");
    must(syscall(SYS_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, NULL), "keyring");
    umask(0022);
    must(syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC), "close_range");
    drop_privileges();
    execve(argv[0], (char *const *)argv, (char *const *)envp);
    die("execve");
    _exit(127);
}

/* ---- the parent ------------------------------------------------------------------------------ */

static void read_usage(int cgroup) {
    static const char *const files[] = {"cpu.stat", "memory.events", "memory.peak", "memory.stat",
                                        "io.stat", "pids.events", "pids.peak", "cpu.pressure"};
    char text[8192];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        int fd = openat(cgroup, files[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue; /* the controller is not on this host's v2 tree */
        if (read(fd, text, sizeof text) < 0)
            die(files[i]);
        close(fd);
    }
}

static void remove_dirs(const char *upper, const char *work) {
    char inner[4200];
    snprintf(inner, sizeof inner, "%s/work", work);
    rmdir(inner);
    must(rmdir(work), work);
    must(rmdir(upper), upper);
}

static double run_one(int cgroups, int host_ns, int empty_ns, const char *upper,
                      const char *work) {
    uint64_t start = now_nsec();
    mark("start");
    if (!host_mounts)
        must(setns(host_ns, CLONE_NEWNS), "setns");
    must(mkdirat(cgroups, "floor", 0755), "cgroup");
    int cgroup = (int)must(openat(cgroups, "floor", O_PATH | O_DIRECTORY | O_CLOEXEC), "cgroup");
    mark("mkdir cgroup");
    must(mkdir(upper, 0755), upper);
    must(mkdir(work, 0755), work);
    int overlay = make_overlay(upper, work);
    mark("overlay");
    if (!host_mounts)
        must(setns(empty_ns, CLONE_NEWNS), "setns");

    int pidfd = -1;
    struct clone_args args = {
        .flags = CLONE_PIDFD | CLONE_INTO_CGROUP | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET |
                 CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP,
        .pidfd = (uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = (uint64_t)cgroup,
    };
    if (must(syscall(SYS_clone3, &args, sizeof args), "clone3") == 0)
        child(overlay);
    close(overlay);
    mark("clone3");

    siginfo_t info = {0};
    struct pollfd poller = {.fd = pidfd, .events = POLLIN};
    must(poll(&poller, 1, -1), "poll");
    must(waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED), "waitid");
    close(pidfd);
    mark("child ran");
    if (info.si_code != CLD_EXITED || info.si_status != 0) {
        fprintf(stderr, "floor: the child ended with code %d, status %d\n", info.si_code,
                info.si_status);
        exit(1);
    }
    read_usage(cgroup);
    close(cgroup);
    must(unlinkat(cgroups, "floor", AT_REMOVEDIR), "rmdir cgroup");
    mark("usage, rmdir cgroup");
    if (!host_mounts)
        must(setns(host_ns, CLONE_NEWNS), "setns");
    remove_dirs(upper, work);
    mark("rmdir upper");
    return (double)(now_nsec() - start) / 1e3;
}

static void parse(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--host-mounts"))
            host_mounts = 1;
        else if (!strcmp(argv[i], "--trace"))
            trace = 1;
        else if (i + 1 < argc && !strcmp(argv[i], "--rootfs"))
            rootfs = argv[++i];
        else if (i + 1 < argc && !strcmp(argv[i], "--cgroup"))
            cgroup_parent = argv[++i];
        else if (i + 1 < argc && !strcmp(argv[i], "--scratch"))
            scratch = argv[++i];
        else if (i + 1 < argc && !strcmp(argv[i], "--filter"))
            read_filter(argv[++i]);
    }
    if (!rootfs || !cgroup_parent || !scratch || !filter_instructions) {
        fprintf(stderr, "usage: floor --rootfs DIR --cgroup DIR --scratch DIR --filter FILE\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    char upper[4096], work[4096], line[64];
    parse(argc, argv);
    snprintf(upper, sizeof upper, "%s/upper", scratch);
    snprintf(work, sizeof work, "%s/work", scratch);
    int cgroups = (int)must(open(cgroup_parent, O_PATH | O_DIRECTORY | O_CLOEXEC), cgroup_parent);
    int host_ns = (int)must(open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC), "ns/mnt");
    int empty_ns = host_mounts ? -1 : enter_empty_mounts();
    while (fgets(line, sizeof line, stdin)) {
        printf("%.1f\n", run_one(cgroups, host_ns, empty_ns, upper, work));
        fflush(stdout);
    }
    return 0;
}
