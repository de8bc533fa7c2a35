/* child_mount.c: the ops that touch mounts and paths.
 *
 * Everything inside the rootfs is hostile: its paths are resolved only by openat2 under the root's
 * descriptor (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS), mounts are made detached, get their flags
 * while nobody can see them, and are moved onto a descriptor, never onto a path. That closes the
 * family of CVE-2021-30465, CVE-2019-19921, CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881.
 */
#include "child.h"

#include <asm/ioctls.h>
#include <asm/stat.h>
#include <asm/statfs.h>
#include <asm/termios.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/stat.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif

enum { PYC_DEVPTS_MAGIC = 0x1cd1, PYC_MAX_PATH = 4096, PYC_OPENAT2_TRIES = 128,
       PYC_UMOUNT_DETACH = 2 };

static int put_fd(struct pyc_ctx *c, const struct pyc_op *op, unsigned slot, long fd) {
    if (fd < 0)
        return (int)fd;
    c->fds[op->slot[slot]] = (int)fd;
    return 0;
}

static void close_fd(long fd) {
    if (fd >= 0)
        PYC_SYS1(__NR_close, fd);
}

static long open_how(int dir_fd, const char *path, uint64_t flags, uint64_t resolve) {
    struct open_how how = {flags | O_CLOEXEC, 0, resolve};
    long rc = -EAGAIN;
    /* EAGAIN: something was renamed while ".." was resolved. An attacker can cause it for as long
     * as he likes, so the number of tries is bounded. */
    for (int i = 0; rc == -EAGAIN && i < PYC_OPENAT2_TRIES; i++)
        rc = PYC_SYS4(__NR_openat2, dir_fd, path, &how, sizeof(how));
    return rc;
}

/* Opens a path of the hostile root. "" and "/" are the root itself. */
static long open_in_root(int root_fd, const char *path, uint64_t flags, uint32_t op_flags) {
    uint64_t resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    if (op_flags & PYC_F_NO_SYMLINKS)
        resolve |= RESOLVE_NO_SYMLINKS;
    return open_how(root_fd, *path ? path : "/", flags, resolve);
}

/* Opens the directory that holds the path's last component, and points at that component. */
static long open_parent(int root_fd, char *path, char **ret_leaf) {
    char *slash = NULL;
    for (char *p = path; *p; p++)
        if (*p == '/' && p[1] != '\0')
            slash = p;
    if (slash == NULL) {
        *ret_leaf = path;
        return open_in_root(root_fd, "/", O_PATH | O_DIRECTORY, 0);
    }
    *slash = '\0';
    long fd = open_in_root(root_fd, path, O_PATH | O_DIRECTORY, 0);
    *slash = '/';
    *ret_leaf = slash + 1;
    return fd;
}

/* Creates the missing directories of `path`, each by mkdirat on its parent's descriptor: a string
 * path that is checked first and made afterwards can be raced out of the root (CVE-2024-45310). */
static int make_parents(int root_fd, char *path, int leaf_too) {
    for (char *p = path + (*path == '/');; p++) {
        if (*p != '/' && *p != '\0')
            continue;
        char saved = *p;
        if (saved == '\0' && !leaf_too)
            return 0;
        *p = '\0';
        char *leaf;
        long parent = open_parent(root_fd, path, &leaf);
        long rc = parent;
        if (rc >= 0)
            rc = PYC_SYS3(__NR_mkdirat, parent, leaf, 0755);
        close_fd(parent);
        *p = saved;
        if (rc < 0 && rc != -EEXIST)
            return (int)rc;
        if (saved == '\0')
            return 0;
    }
}

static int make_file(int root_fd, char *path) {
    char *leaf;
    long parent = open_parent(root_fd, path, &leaf);
    if (parent < 0)
        return (int)parent;
    long fd = PYC_SYS4(__NR_openat, parent, leaf,
                       O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    close_fd(parent);
    close_fd(fd);
    return fd < 0 && fd != -EEXIST ? (int)fd : 0;
}

static int move_onto(long mount_fd, long target_fd) {
    return (int)PYC_SYS5(__NR_move_mount, mount_fd, "", target_fd, "",
                         MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static long clone_tree(long fd, unsigned recursive) {
    return PYC_SYS3(__NR_open_tree, fd, "",
                    AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recursive);
}

static int set_attr(long fd, uint64_t set, uint64_t clear, uint64_t propagation, int userns_fd,
                    unsigned recursive) {
    struct mount_attr attr = {set, clear, propagation, 0};
    if (userns_fd >= 0)
        attr.userns_fd = (unsigned)userns_fd;
    return (int)PYC_SYS5(__NR_mount_setattr, fd, "", AT_EMPTY_PATH | recursive, &attr,
                         sizeof(attr));
}

/* `slot0` is a file system that the plan itself made (procfs, tmpfs), so "self" may be followed,
 * but nothing leads out of it: a container can't redirect this write (CVE-2025-52881). */
int pyc_op_write_at(struct pyc_ctx *c, const struct pyc_op *op) {
    const char *text = pyc_text(c, op->str[1]);
    long fd = open_how(pyc_fd(c, op, 0), pyc_text(c, op->str[0]), O_WRONLY,
                       RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV);
    if (fd == -ENOENT && op->flags & PYC_F_OPTIONAL)
        return 0;
    if (fd < 0)
        return (int)fd;
    long rc = PYC_SYS3(__NR_write, fd, text, pyc_strlen(text));
    close_fd(fd);
    return rc < 0 ? (int)rc : 0;
}

int pyc_op_propagation(struct pyc_ctx *c, const struct pyc_op *op) {
    (void)c;
    return (int)PYC_SYS5(__NR_mount, 0, "/", 0, op->num[0], 0);
}

static int configure(long fs_fd, char *options, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        char *value = options;
        while (*value != '\0' && *value != '=')
            value++;
        long rc;
        if (*value == '=') {
            *value = '\0';
            rc = PYC_SYS5(__NR_fsconfig, fs_fd, FSCONFIG_SET_STRING, options, value + 1, 0);
            *value = '=';
        } else {
            rc = PYC_SYS5(__NR_fsconfig, fs_fd, FSCONFIG_SET_FLAG, options, 0, 0);
        }
        if (rc < 0)
            return (int)rc;
        options += pyc_strlen(options) + 1;
    }
    return (int)PYC_SYS5(__NR_fsconfig, fs_fd, FSCONFIG_CMD_CREATE, 0, 0, 0);
}

int pyc_op_fsmount(struct pyc_ctx *c, const struct pyc_op *op) {
    long fs_fd = PYC_SYS2(__NR_fsopen, pyc_text(c, op->str[0]), FSOPEN_CLOEXEC);
    if (fs_fd < 0)
        return (int)fs_fd;
    long rc = configure(fs_fd, pyc_text(c, op->str[1]), op->num[0]);
    if (rc >= 0)
        rc = put_fd(c, op, 0, PYC_SYS3(__NR_fsmount, fs_fd, FSMOUNT_CLOEXEC, op->num[1]));
    close_fd(fs_fd);
    return (int)rc;
}

int pyc_op_open_tree(struct pyc_ctx *c, const struct pyc_op *op) {
    const char *path = pyc_text(c, op->str[0]);
    int base = pyc_fd(c, op, 0);
    long rc;
    if (base < 0 || *path == '\0') {
        unsigned empty = *path == '\0' ? AT_EMPTY_PATH : 0;
        rc = PYC_SYS3(__NR_open_tree, base < 0 ? AT_FDCWD : base, path,
                      op->num[0] | OPEN_TREE_CLOEXEC | empty);
    } else {
        long fd = open_in_root(base, path, O_PATH, op->flags);
        if (fd < 0)
            return fd == -ENOENT && op->flags & PYC_F_OPTIONAL ? 0 : (int)fd;
        rc = PYC_SYS3(__NR_open_tree, fd, "", op->num[0] | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
        close_fd(fd);
    }
    return put_fd(c, op, 1, rc);
}

int pyc_op_mount_setattr(struct pyc_ctx *c, const struct pyc_op *op) {
    return set_attr(pyc_fd(c, op, 0), op->num[0], op->num[1], op->num[2], pyc_fd(c, op, 1),
                    op->flags & PYC_F_RECURSIVE ? AT_RECURSIVE : 0);
}

/* The source is detached and final; the target is a descriptor resolved under the root. */
int pyc_op_move_mount(struct pyc_ctx *c, const struct pyc_op *op) {
    int mount_fd = pyc_fd(c, op, 0), root_fd = pyc_fd(c, op, 1);
    char *path = pyc_text(c, op->str[0]);
    if (mount_fd < 0) /* an optional OPEN_TREE found nothing */
        return op->flags & PYC_F_OPTIONAL ? 0 : -EBADF;
    long target = open_in_root(root_fd, path, O_PATH, op->flags);
    if (target == -ENOENT && op->flags & (PYC_F_MAKE_DIR | PYC_F_MAKE_FILE)) {
        int rc = make_parents(root_fd, path, (op->flags & PYC_F_MAKE_DIR) != 0);
        if (rc >= 0 && op->flags & PYC_F_MAKE_FILE)
            rc = make_file(root_fd, path);
        if (rc < 0)
            return rc;
        target = open_in_root(root_fd, path, O_PATH, op->flags);
    }
    if (target < 0)
        return (int)target;
    int rc = move_onto(mount_fd, target);
    close_fd(target);
    return rc;
}

/* The directory is the monitor's own (its namespace holds nothing else); the descriptor of the
 * mount stays the descriptor of the root. */
int pyc_op_attach_root(struct pyc_ctx *c, const struct pyc_op *op) {
    return (int)PYC_SYS5(__NR_move_mount, pyc_fd(c, op, 0), "", AT_FDCWD, pyc_text(c, op->str[0]),
                         MOVE_MOUNT_F_EMPTY_PATH);
}

static int made(long rc, const struct pyc_op *op) {
    return rc == -EEXIST && op->flags & PYC_F_EXIST_OK ? 0 : (int)rc;
}

int pyc_op_mkdir(struct pyc_ctx *c, const struct pyc_op *op) {
    char *leaf;
    long parent = open_parent(pyc_fd(c, op, 0), pyc_text(c, op->str[0]), &leaf);
    if (parent < 0)
        return (int)parent;
    long rc = PYC_SYS3(__NR_mkdirat, parent, leaf, op->num[0]);
    close_fd(parent);
    return made(rc, op);
}

int pyc_op_mknod(struct pyc_ctx *c, const struct pyc_op *op) {
    char *leaf;
    long parent = open_parent(pyc_fd(c, op, 0), pyc_text(c, op->str[0]), &leaf);
    if (parent < 0)
        return (int)parent;
    long rc = PYC_SYS4(__NR_mknodat, parent, leaf, op->num[0], op->num[1]);
    if (rc >= 0 && op->num[2] != 0)
        rc = PYC_SYS5(__NR_fchownat, parent, leaf, op->num[2] >> 32, (uint32_t)op->num[2],
                      AT_SYMLINK_NOFOLLOW);
    close_fd(parent);
    return made(rc, op);
}

int pyc_op_symlink(struct pyc_ctx *c, const struct pyc_op *op) {
    char *leaf;
    long parent = open_parent(pyc_fd(c, op, 0), pyc_text(c, op->str[0]), &leaf);
    if (parent < 0)
        return (int)parent;
    long rc = PYC_SYS3(__NR_symlinkat, pyc_text(c, op->str[1]), parent, leaf);
    close_fd(parent);
    return made(rc, op);
}

/* A file is covered with our own /dev/null, opened through the /dev that the plan made and not
 * through the image's path (CVE-2025-31133), a directory with one empty read-only tmpfs. What does
 * not exist needs no mask; every other error fails closed. */
int pyc_op_mask(struct pyc_ctx *c, const struct pyc_op *op) {
    struct stat st;
    long target = open_in_root(pyc_fd(c, op, 0), pyc_text(c, op->str[0]), O_PATH, 0);
    if (target == -ENOENT || target == -ENOTDIR)
        return 0;
    if (target < 0)
        return (int)target;
    long rc = PYC_SYS4(__NR_newfstatat, target, "", &st, AT_EMPTY_PATH);
    if (rc >= 0 && (st.st_mode & S_IFMT) == S_IFDIR && !c->empty_attached) {
        /* Kernels before 6.15 can't clone a detached mount, so its first use is the mount itself */
        rc = move_onto(pyc_fd(c, op, 2), target);
        c->empty_attached = rc >= 0;
    } else if (rc >= 0) {
        long tree = clone_tree((st.st_mode & S_IFMT) == S_IFDIR ? pyc_fd(c, op, 2)
                                                                : pyc_fd(c, op, 1), 0);
        rc = tree < 0 ? tree : move_onto(tree, target);
        close_fd(tree);
    }
    close_fd(target);
    return (int)rc;
}

int pyc_op_readonly(struct pyc_ctx *c, const struct pyc_op *op) {
    long target = open_in_root(pyc_fd(c, op, 0), pyc_text(c, op->str[0]), O_PATH, 0);
    if (target == -ENOENT || target == -ENOTDIR)
        return 0;
    if (target < 0)
        return (int)target;
    long tree = clone_tree(target, AT_RECURSIVE);
    long rc = tree;
    if (rc >= 0)
        rc = set_attr(tree, MOUNT_ATTR_RDONLY, 0, 0, -1, AT_RECURSIVE);
    if (rc >= 0)
        rc = move_onto(tree, target);
    close_fd(tree);
    close_fd(target);
    return (int)rc;
}

/* pivot_root(".", "."): the new root lands over the old one, which is then detached through the
 * descriptor that still holds it (pivot_root(2), NOTES). No name is ever looked up. */
int pyc_op_pivot_root(struct pyc_ctx *c, const struct pyc_op *op) {
    long old = PYC_SYS4(__NR_openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    long rc = old;
    if (rc >= 0)
        rc = PYC_SYS1(__NR_fchdir, pyc_fd(c, op, 0));
    if (rc >= 0)
        rc = PYC_SYS2(__NR_pivot_root, ".", ".");
    if (rc >= 0)
        rc = PYC_SYS1(__NR_fchdir, old);
    if (rc >= 0)
        rc = PYC_SYS2(__NR_umount2, ".", PYC_UMOUNT_DETACH);
    if (rc >= 0)
        rc = PYC_SYS1(__NR_chdir, "/");
    close_fd(old);
    return (int)rc;
}

/* After PIVOT_ROOT. getcwd must be absolute: with a leaked descriptor of the host, "/proc/self/fd/N"
 * as working directory is a way out that shows as "(unreachable)" (CVE-2024-21626). */
int pyc_op_chdir(struct pyc_ctx *c, const struct pyc_op *op) {
    char cwd[PYC_MAX_PATH];
    char *path = pyc_text(c, op->str[0]);
    long rc = PYC_SYS1(__NR_chdir, path);
    if (rc == -ENOENT && op->flags & PYC_F_MAKE_DIR) {
        long root = PYC_SYS4(__NR_openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
        rc = root < 0 ? root : make_parents((int)root, path, 1);
        if (rc >= 0 && op->num[0] != 0) {
            char *leaf;
            long parent = open_parent((int)root, path, &leaf);
            rc = parent < 0 ? parent
                            : PYC_SYS5(__NR_fchownat, parent, leaf, op->num[0] >> 32,
                                       (uint32_t)op->num[0], AT_SYMLINK_NOFOLLOW);
            close_fd(parent);
        }
        close_fd(root);
        if (rc >= 0)
            rc = PYC_SYS1(__NR_chdir, path);
    }
    if (rc < 0)
        return (int)rc;
    rc = PYC_SYS2(__NR_getcwd, cwd, sizeof(cwd));
    return rc < 0 ? (int)rc : (cwd[0] == '/' ? 0 : -EXDEV);
}

/* Makes a terminal in the container's own devpts. TIOCGPTPEER gives the other end without a path
 * lookup, and the file system's magic is checked, so nothing can stand in for it (CVE-2025-52565).*/
int pyc_op_terminal(struct pyc_ctx *c, const struct pyc_op *op) {
    struct statfs fs;
    struct winsize size = {(unsigned short)(op->num[0] >> 32), (unsigned short)op->num[0], 0, 0};
    struct pyc_report report = {PYC_REPORT_MASTER, 0, op->code, 0};
    int unlocked = 0, root_fd = pyc_fd(c, op, 0);
    int to = op->slot[1] < 0 ? c->status_fd : pyc_fd(c, op, 1);
    long master = open_in_root(root_fd, "dev/pts/ptmx", O_RDWR | O_NOCTTY, PYC_F_NO_SYMLINKS);
    if (master < 0)
        return (int)master;
    long peer = -1, rc = PYC_SYS2(__NR_fstatfs, master, &fs);
    if (rc >= 0 && fs.f_type != PYC_DEVPTS_MAGIC)
        rc = -EXDEV;
    if (rc >= 0)
        rc = PYC_SYS3(__NR_ioctl, master, TIOCSPTLCK, &unlocked);
    if (rc >= 0)
        rc = peer = PYC_SYS3(__NR_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (rc >= 0 && (size.ws_row != 0 || size.ws_col != 0))
        rc = PYC_SYS3(__NR_ioctl, master, TIOCSWINSZ, &size);
    if (rc >= 0 && op->num[1] != 0) /* the user owns the terminal; its group stays devpts' gid= */
        rc = PYC_SYS3(__NR_fchown, peer, op->num[1] >> 32, -1);
    if (rc >= 0 && op->flags & PYC_F_CONSOLE) {
        long tree = clone_tree(peer, 0);
        long console = open_in_root(root_fd, "dev/console", O_PATH, PYC_F_NO_SYMLINKS);
        rc = tree < 0 ? tree : console < 0 ? console : move_onto(tree, console);
        close_fd(tree);
        close_fd(console);
    }
    if (rc >= 0)
        rc = pyc_send_report(to, &report, (int)master);
    for (int fd = 0; rc >= 0 && fd < 3; fd++)
        rc = PYC_SYS3(__NR_dup3, peer, fd, 0);
    if (rc >= 0)
        rc = PYC_SYS3(__NR_ioctl, 0, TIOCSCTTY, 0);
    close_fd(master);
    close_fd(peer);
    return rc < 0 ? (int)rc : 0;
}

int pyc_op_open(struct pyc_ctx *c, const struct pyc_op *op) {
    const char *path = pyc_text(c, op->str[0]);
    int base = pyc_fd(c, op, 0);
    long fd = base < 0 ? PYC_SYS4(__NR_openat, AT_FDCWD, path, op->num[0] | O_CLOEXEC, 0)
                       : open_in_root(base, path, op->num[0], op->flags);
    return put_fd(c, op, 1, fd);
}

int pyc_op_fstype(struct pyc_ctx *c, const struct pyc_op *op) {
    struct statfs fs;
    long rc = PYC_SYS2(__NR_fstatfs, pyc_fd(c, op, 0), &fs);
    return rc < 0 ? (int)rc : ((uint64_t)fs.f_type == op->num[0] ? 0 : -EXDEV);
}
