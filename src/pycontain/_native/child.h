/* child.h: what child.c (the loop, ids, capabilities, exec) and child_mount.c (everything that
 * touches a mount or a path) share. Both run after clone3: raw system calls only, no libc. */
#ifndef PYCONTAIN_CHILD_H
#define PYCONTAIN_CHILD_H

#include "plan.h"
#include "sys.h"

struct pyc_ctx {
    struct pyc_plan *plan;
    char *arena;
    int *fds;           /* the slot table, PYC_MAX_SLOTS long, -1 = empty                         */
    int status_fd;      /* SOCK_SEQPACKET to the monitor                                          */
    int highest_fd;     /* highest descriptor that STDIO made; above it everything closes at exec */
    int empty_attached; /* the masks' empty directory is in the tree: clone it from now on        */
};

static inline char *pyc_text(const struct pyc_ctx *c, uint32_t offset) { return c->arena + offset; }

/* The descriptor in slot `i` of the op, or -1 where the op names none. */
static inline int pyc_fd(const struct pyc_ctx *c, const struct pyc_op *op, unsigned i) {
    return op->slot[i] < 0 ? -1 : c->fds[op->slot[i]];
}

/* child_mount.c: each executes one op and returns 0 or -errno. */
int pyc_op_write_at(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_propagation(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_fsmount(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_open_tree(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_mount_setattr(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_move_mount(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_attach_root(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_mkdir(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_mknod(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_symlink(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_mask(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_readonly(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_pivot_root(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_chdir(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_terminal(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_open(struct pyc_ctx *c, const struct pyc_op *op);
int pyc_op_fstype(struct pyc_ctx *c, const struct pyc_op *op);

/* child.c: send a report, with a descriptor unless fd is -1. Returns 0 or -errno. */
int pyc_send_report(int socket_fd, const struct pyc_report *report, int fd);

#endif
