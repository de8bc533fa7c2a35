/* plan_check.c: everything that the child relies on in a plan (record_check.c: the monitor's part).
 *
 * Hosted (the extension, fuzzing) and freestanding (the monitor): no libc, no allocation, no
 * writes but the refusal. What it reads must not change meanwhile: the caller hands in a private
 * copy, never a mapping that the client can still write to.
 *
 * Invariant after success: every offset, count and slot that child.c uses stays inside the plan
 * and the slot table, whatever the client is. The order rules are against our own mistakes: an op
 * in the wrong place would leave a container less confined than its spec says.
 */
#include "check.h"

#include <linux/errno.h>
#include <linux/sched.h>

#define NEW_FLAGS                                                                               \
    ((uint64_t)(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |   \
                CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWTIME))
#define U32 0xffffffffULL
#define U64 0xffffffffffffffffULL
#define MAX_ID (U32 - 1)      /* (uid_t)-1 would mean "leave it as it is" */
#define MAX_GROUPS 65536U     /* NGROUPS_MAX, linux/limits.h */
#define MAX_FS_OPTIONS 256U
#define MAX_STDIO_FD 2U       /* from 3 on there may be a slot or the status socket */
#define BLOCK PYC_MAX_BLOB_BYTES

/* How an op uses a string: 0 = not at all; MAY = or none; DATA has a check of its own. */
enum { MAY = 1, TEXT, PATH, ABS, DATA };
/* How it uses a slot. */
enum { IN = 1, IN_MAY, OUT, OUT_MAY };

static const struct rule {
    uint8_t str[4], slot[3];
    uint8_t late;      /* may follow SECCOMP */
    uint32_t flags;    /* enum pyc_op_flags that it knows */
    uint64_t max[3];   /* of num[]; 0 = must be 0 */
} rules[PYC_OP_LAST + 1] = {
    [PYC_OP_GATE] = {{0}, {0}, 0, 0, {PYC_GATE_START}},
    [PYC_OP_SETNS] = {{0}, {IN}, 0, 0, {NEW_FLAGS}},
    [PYC_OP_UNSHARE] = {{0}, {0}, 0, 0, {NEW_FLAGS}},
    [PYC_OP_WRITE_FD] = {{TEXT}, {IN}, 0, 0, {0}},
    [PYC_OP_WRITE_AT] = {{PATH, TEXT}, {IN}, 0, PYC_F_OPTIONAL, {0}},
    [PYC_OP_SETHOSTNAME] = {{TEXT}, {0}, 0, 0, {0}},
    [PYC_OP_SETDOMAINNAME] = {{TEXT}, {0}, 0, 0, {0}},
    [PYC_OP_PROPAGATION] = {{0}, {0}, 0, 0, {U32}},
    [PYC_OP_FSMOUNT] = {{PATH, DATA}, {OUT}, 0, 0, {MAX_FS_OPTIONS, U32}},
    [PYC_OP_OPEN_TREE] = {{MAY}, {IN_MAY, OUT}, 0, PYC_F_OPTIONAL | PYC_F_NO_SYMLINKS, {U32}},
    [PYC_OP_MOUNT_SETATTR] = {{0}, {IN, IN_MAY}, 0, PYC_F_RECURSIVE, {U64, U64, U32}},
    [PYC_OP_MOVE_MOUNT] = {{PATH}, {IN, IN}, 0, PYC_F_OPTIONAL | PYC_F_NO_SYMLINKS |
                           PYC_F_MAKE_DIR | PYC_F_MAKE_FILE, {0}},
    [PYC_OP_ATTACH_ROOT] = {{ABS}, {IN}, 0, 0, {0}}, /* the mount itself becomes the root fd */
    [PYC_OP_MKDIR] = {{PATH}, {IN}, 0, PYC_F_EXIST_OK, {07777}},
    [PYC_OP_MKNOD] = {{PATH}, {IN}, 0, PYC_F_EXIST_OK, {0177777, U32, U64}},
    [PYC_OP_SYMLINK] = {{PATH, PATH}, {IN}, 0, PYC_F_EXIST_OK, {0}},
    [PYC_OP_MASK] = {{PATH}, {IN, IN, IN}, 0, 0, {0}},
    [PYC_OP_READONLY] = {{PATH}, {IN}, 0, 0, {0}},
    [PYC_OP_PIVOT_ROOT] = {{0}, {IN}, 0, 0, {0}},
    [PYC_OP_CHDIR] = {{ABS}, {0}, 0, PYC_F_MAKE_DIR, {U64}},
    [PYC_OP_STDIO] = {{0}, {IN}, 1, 0, {MAX_STDIO_FD}},
    [PYC_OP_TERMINAL] = {{0}, {IN, IN_MAY}, 0, PYC_F_CONSOLE, {0xffff0000ffffULL, U64}},
    [PYC_OP_RLIMIT] = {{0}, {0}, 0, 0, {15, U64, U64}},
    [PYC_OP_UMASK] = {{0}, {0}, 0, 0, {0777}},
    [PYC_OP_KEYRING] = {{MAY}, {0}, 0, PYC_F_OPTIONAL, {0}},
    [PYC_OP_CAP_BOUND] = {{0}, {0}, 1, 0, {U64}},
    [PYC_OP_SETGROUPS] = {{DATA}, {0}, 1, 0, {MAX_GROUPS}},
    [PYC_OP_SETUSER] = {{0}, {0}, 1, 0, {MAX_ID, MAX_ID}},
    [PYC_OP_CAPSET] = {{0}, {0}, 1, 0, {U64, U64, U64}},
    [PYC_OP_CAP_AMBIENT] = {{0}, {0}, 1, 0, {U64}},
    [PYC_OP_NO_NEW_PRIVS] = {{0}, {0}, 1, 0, {0}},
    [PYC_OP_SECCOMP] = {{DATA}, {OUT_MAY}, 1, 0, {PYC_MAX_FILTER, U32}},
    [PYC_OP_EXEC] = {{DATA, DATA, DATA, DATA}, {IN_MAY}, 1, 0, {BLOCK, BLOCK, BLOCK}},
    [PYC_OP_PDEATHSIG] = {{0}, {0}, 1, 0, {64}},
    [PYC_OP_OPEN] = {{PATH}, {IN_MAY, OUT}, 0, PYC_F_NO_SYMLINKS, {U32}},
    [PYC_OP_CLOSE] = {{0}, {IN}, 1, 0, {0}},
    [PYC_OP_FSTYPE] = {{0}, {IN}, 0, 0, {U32}},
    [PYC_OP_PERSONALITY] = {{0}, {0}, 0, 0, {U32}},
    /* SETSID, LOOPBACK_UP and JOIN_TIMENS take nothing at all. */
};

struct walk {
    struct arena arena;
    uint64_t open[(PYC_MAX_SLOTS + 63) / 64];  /* slots that hold an fd at this op */
    uint64_t maybe[(PYC_MAX_SLOTS + 63) / 64]; /* or not: an optional OPEN_TREE's */
    uint32_t fd_count, slot_count, op_count;
    uint64_t clone_flags;
    int started, filtered, dropped; /* seen: GATE(START), SECCOMP, SETUSER other than root */
};

static int check_data(const struct arena *a, uint32_t offset, uint64_t bytes, uint32_t align) {
    REFUSE_UNLESS(in_range(offset, bytes, 1, a->bytes));
    REFUSE_UNLESS((uintptr_t)(a->text + offset) % align == 0);
    REFUSE_UNLESS(offset >= a->scratch_end || offset + bytes <= a->scratch);
    return 0;
}

/* `count` strings one after the other, each shorter than max_bytes. */
static int check_block(const struct arena *a, uint32_t offset, uint64_t count, uint32_t max_bytes) {
    uint32_t at = offset, begin;
    uint32_t end = offset < a->scratch ? a->scratch : a->bytes;

    REFUSE_UNLESS(arena_has(a, offset));
    for (; count > 0; count--) {
        for (begin = at; at < end && a->text[at] != '\0'; at++)
            ;
        REFUSE_UNLESS(at < end);
        REFUSE_UNLESS(at - begin < max_bytes);
        at++;
    }
    return 0;
}

static int check_strings(const struct walk *w, const struct pyc_op *op, const struct rule *rule) {
    const struct arena *a = &w->arena;

    for (int i = 0; i < 4; i++) {
        uint32_t offset = op->str[i];

        if (rule->str[i] == DATA)
            continue;
        REFUSE_UNLESS(rule->str[i] != 0 || offset == 0);
        REFUSE_UNLESS(arena_has(a, offset));
        REFUSE_UNLESS(rule->str[i] < TEXT || offset != 0);
        REFUSE_UNLESS(rule->str[i] < PATH || a->text[offset] != '\0');
        REFUSE_UNLESS(rule->str[i] != ABS || a->text[offset] == '/');
    }
    return 0;
}

static int check_slots(struct walk *w, const struct pyc_op *op, const struct rule *rule) {
    int optional = (op->flags & PYC_F_OPTIONAL) != 0;

    for (int i = 0; i < 3; i++) {
        int32_t slot = op->slot[i];
        uint8_t use = rule->slot[i];
        uint64_t bit, *open, *maybe;

        if (slot == -1 && (use == 0 || use == IN_MAY || use == OUT_MAY))
            continue;
        REFUSE_UNLESS(use != 0);
        REFUSE_UNLESS(slot >= 0 && (uint32_t)slot < w->slot_count);
        bit = 1ULL << (slot % 64);
        open = &w->open[slot / 64];
        maybe = &w->maybe[slot / 64];
        if (use == IN || use == IN_MAY) {
            /* To the child an empty slot looks like one that is not given, and means "/". */
            int skipped = op->code == PYC_OP_MOVE_MOUNT && optional && i == 0;

            REFUSE_UNLESS((*open & bit) != 0 || (skipped && (*maybe & bit) != 0));
        } else {
            /* A received fd is replaced only after CLOSE: nobody loses one unknowingly. */
            REFUSE_UNLESS((uint32_t)slot >= w->fd_count || (*open & bit) == 0);
            *open = optional ? *open & ~bit : *open | bit;
            *maybe = optional ? *maybe | bit : *maybe & ~bit;
        }
    }
    if (op->code == PYC_OP_CLOSE)
        w->open[op->slot[0] / 64] &= ~(1ULL << (op->slot[0] % 64));
    return 0;
}

/* Which ops may stand where. */
static int check_order(struct walk *w, const struct pyc_op *op, uint32_t index) {
    int mapped = op->code == PYC_OP_GATE && op->num[0] == PYC_GATE_MAPPED;

    /* Before the maps are written every id is the overflow id: nothing may come before. */
    REFUSE_UNLESS(mapped == (index == 0 && (w->clone_flags & CLONE_NEWUSER) != 0));
    REFUSE_UNLESS((op->code == PYC_OP_EXEC) == (index == w->op_count - 1));
    REFUSE_UNLESS(!w->filtered || rules[op->code].late);
    REFUSE_UNLESS(op->code != PYC_OP_PIVOT_ROOT || !w->dropped);
    if (op->code == PYC_OP_GATE && !mapped) {
        REFUSE_UNLESS(op->num[0] == PYC_GATE_START);
        REFUSE_UNLESS(!w->started);
        w->started = 1;
    }
    if (op->code == PYC_OP_SECCOMP)
        w->filtered = 1;
    if (op->code == PYC_OP_SETUSER && (op->num[0] != 0 || op->num[1] != 0))
        w->dropped = 1;
    return 0;
}

/* What the table can't say. */
static int check_particular(const struct walk *w, const struct pyc_op *op) {
    const struct arena *a = &w->arena;

    switch (op->code) {
    case PYC_OP_SETNS:
    case PYC_OP_UNSHARE:
        REFUSE_UNLESS((op->num[0] & ~NEW_FLAGS) == 0);
        REFUSE_UNLESS(op->code == PYC_OP_SETNS || op->num[0] != 0);
        return 0;
    case PYC_OP_FSMOUNT:
        return check_block(a, op->str[1], op->num[0], MAX_PATH);
    case PYC_OP_TERMINAL:
        REFUSE_UNLESS((op->num[0] & U32) <= 0xffff);
        return 0;
    case PYC_OP_SETGROUPS:
        if (op->num[0] == 0 && op->str[0] == 0)
            return 0;
        return check_data(a, op->str[0], op->num[0] * sizeof(uint32_t), sizeof(uint32_t));
    case PYC_OP_SECCOMP:
        REFUSE_UNLESS(op->num[0] >= 1);
        return check_data(a, op->str[0], op->num[0] * 8 /* sizeof(struct sock_filter) */, 8);
    case PYC_OP_EXEC:
        REFUSE_UNLESS(op->num[0] >= 1);
        REFUSE_UNLESS(op->slot[0] >= 0 || op->num[2] >= 1);
        TRY(check_block(a, op->str[0], op->num[0], PYC_MAX_BLOB_BYTES));
        TRY(check_block(a, op->str[1], op->num[1], PYC_MAX_BLOB_BYTES));
        return check_block(a, op->str[2], op->num[2], MAX_PATH);
    default:
        return 0;
    }
}

static int check_op(struct walk *w, const struct pyc_op *op, uint32_t index) {
    const struct rule *rule;

    REFUSE_UNLESS(op->code >= 1 && op->code <= PYC_OP_LAST);
    rule = &rules[op->code];
    REFUSE_UNLESS((op->flags & ~rule->flags) == 0);
    REFUSE_UNLESS(op->pad == 0);
    for (int i = 0; i < 3; i++)
        REFUSE_UNLESS(op->num[i] <= rule->max[i]);
    TRY(check_order(w, op, index));
    TRY(check_strings(w, op, rule));
    TRY(check_slots(w, op, rule));
    return check_particular(w, op);
}

/* The scratch of the last op, EXEC: found first, so that everything else can be kept out of it. */
static int check_scratch(struct arena *a, const struct pyc_op *exec) {
    uint64_t bytes;

    REFUSE_UNLESS(exec->code == PYC_OP_EXEC);
    REFUSE_UNLESS(exec->num[0] <= PYC_MAX_BLOB_BYTES && exec->num[1] <= PYC_MAX_BLOB_BYTES);
    bytes = (exec->num[0] + exec->num[1] + 2) * sizeof(uint64_t);
    TRY(check_data(a, exec->str[3], bytes, sizeof(uint64_t)));
    /* A string that begins before the scratch ends before it. */
    REFUSE_UNLESS(a->text[exec->str[3] - 1] == '\0');
    a->scratch = exec->str[3];
    a->scratch_end = a->scratch + (uint32_t)bytes;
    return 0;
}

static int check_maps(const struct arena *a, const struct pyc_plan *plan) {
    const char *deny;

    REFUSE_UNLESS(arena_has(a, plan->uid_map) && arena_has(a, plan->gid_map));
    REFUSE_UNLESS(arena_has(a, plan->setgroups));
    if ((plan->clone_flags & CLONE_NEWUSER) != 0) {
        REFUSE_UNLESS(a->text[plan->uid_map] != '\0' && a->text[plan->gid_map] != '\0');
    } else {
        REFUSE_UNLESS(plan->uid_map == 0 && plan->gid_map == 0 && plan->setgroups == 0);
    }
    deny = a->text + plan->setgroups;
    REFUSE_UNLESS(deny[0] == '\0' || (deny[0] == 'd' && deny[1] == 'e' && deny[2] == 'n' &&
                                      deny[3] == 'y' && deny[4] == '\0'));
    return 0;
}

static int check_plan(const struct pyc_plan *plan, uint64_t plan_bytes, uint32_t fds_received,
                      uint32_t *ret_index) {
    struct walk w = {0};
    const struct pyc_op *ops;
    uint64_t ops_end;

    REFUSE_UNLESS((uintptr_t)plan % 8 == 0);
    REFUSE_UNLESS(plan_bytes >= sizeof *plan && plan_bytes <= PYC_MAX_BLOB_BYTES);
    REFUSE_UNLESS(plan->abi == PYC_ABI);
    REFUSE_UNLESS(plan->total_bytes == plan_bytes);
    REFUSE_UNLESS(plan->pad == 0);
    REFUSE_UNLESS(plan->op_count >= 1 && plan->op_count <= PYC_MAX_OPS);
    REFUSE_UNLESS(plan->op_offset % 8 == 0);
    REFUSE_UNLESS(in_range(plan->op_offset, plan->op_count * sizeof *ops, sizeof *plan, plan_bytes));
    ops = (const struct pyc_op *)((const char *)plan + plan->op_offset);
    ops_end = plan->op_offset + plan->op_count * sizeof *ops;
    TRY(check_arena((const char *)plan, plan->arena_bytes, plan->arena_offset, sizeof *plan,
                    plan->total_bytes, &w.arena));
    REFUSE_UNLESS(plan->arena_offset >= ops_end ||
                  plan->arena_offset + plan->arena_bytes <= plan->op_offset);
    REFUSE_UNLESS(plan->fd_count == fds_received);
    REFUSE_UNLESS(plan->fd_count <= plan->slot_count && plan->slot_count <= PYC_MAX_SLOTS);
    REFUSE_UNLESS((plan->clone_flags & ~NEW_FLAGS) == 0);
    REFUSE_UNLESS(plan->cgroup_slot >= -1 && plan->cgroup_slot < (int64_t)plan->fd_count);
    REFUSE_UNLESS(plan->pidns_slot >= -1 && plan->pidns_slot < (int64_t)plan->fd_count);
    TRY(check_scratch(&w.arena, &ops[plan->op_count - 1]));
    TRY(check_maps(&w.arena, plan));

    w.fd_count = plan->fd_count;
    w.slot_count = plan->slot_count;
    w.op_count = plan->op_count;
    w.clone_flags = plan->clone_flags;
    for (uint32_t slot = 0; slot < plan->fd_count; slot++)
        w.open[slot / 64] |= 1ULL << (slot % 64);
    for (uint32_t i = 0; i < plan->op_count; i++) {
        *ret_index = i;
        TRY(check_op(&w, &ops[i], i));
    }
    return 0;
}

int pyc_plan_check(const void *plan, uint64_t plan_bytes, uint32_t fds_received,
                   struct pyc_refusal *ret_refusal) {
    uint32_t index = 0;
    int line = check_plan(plan, plan_bytes, fds_received, &index);

    if (line == 0)
        return 0;
    *ret_refusal = (struct pyc_refusal){index, (uint32_t)line};
    return -EINVAL;
}
