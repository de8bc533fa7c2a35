/* plan_check.c: everything that the monitor and the child rely on in a record and a plan.
 *
 * Hosted (the extension, fuzzing) and freestanding (the monitor): no libc, no allocation, no
 * writes but the refusal. What it reads must not change meanwhile: the caller hands in a private
 * copy, never a mapping that the client can still write to.
 *
 * Invariant after success: every offset, count and slot that child.c uses stays inside the blob
 * and the slot table, whatever the client is. The order rules are against our own mistakes: an op
 * in the wrong place would leave a container less confined than its spec says.
 *
 * Each check returns 0 or its own line, which is what a refusal names.
 */
#include "plan.h"

#include <linux/errno.h>
#include <linux/sched.h>

#define REFUSE_UNLESS(condition) \
    do {                         \
        if (!(condition))        \
            return __LINE__;     \
    } while (0)
#define TRY(check)       \
    do {                 \
        int line_ = (check); \
        if (line_ != 0)  \
            return line_; \
    } while (0)

#define NEW_FLAGS                                                                           \
    ((uint64_t)(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | \
                CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWTIME))
#define U32 0xffffffffULL
#define U64 0xffffffffffffffffULL
#define MAX_GROUPS 65536U     /* NGROUPS_MAX, linux/limits.h */
#define MAX_PATH 4096U        /* PATH_MAX, with the NUL */
#define MAX_FS_OPTIONS 256U
#define MAX_STDIO_FD 63U      /* child.c keeps its own fds from 64 on */
#define STATE_DIR_ROOM 256U   /* what the monitor may append to a path */

/* How an op uses a string or a slot; 0 = must not be given. */
enum use_str { S_TEXT_OR_NONE = 1, S_TEXT, S_PATH, S_ABSOLUTE, S_DATA /* has its own check */ };
enum use_slot { L_IN = 1, L_IN_OR_NONE, L_OUT, L_OUT_OR_NONE };

struct rule {
    uint8_t str[4], slot[3];
    uint8_t late;      /* may follow SECCOMP */
    uint32_t flags;    /* enum pyc_op_flags that it knows */
    uint64_t max[3];   /* of num[]; 0 = not used, must be 0 */
};

static const struct rule rules[PYC_OP_LAST + 1] = {
    [PYC_OP_GATE] = {.max = {PYC_GATE_START}},
    [PYC_OP_SETSID] = {.max = {0}},
    [PYC_OP_SETNS] = {.slot = {L_IN}, .max = {NEW_FLAGS}},
    [PYC_OP_UNSHARE] = {.max = {NEW_FLAGS}},
    [PYC_OP_WRITE_FD] = {.str = {S_TEXT}, .slot = {L_IN}},
    [PYC_OP_WRITE_AT] = {.str = {S_PATH, S_TEXT}, .slot = {L_IN}, .flags = PYC_F_OPTIONAL},
    [PYC_OP_SETHOSTNAME] = {.str = {S_TEXT}},
    [PYC_OP_SETDOMAINNAME] = {.str = {S_TEXT}},
    [PYC_OP_LOOPBACK_UP] = {.max = {0}},
    [PYC_OP_PROPAGATION] = {.max = {U32}},
    [PYC_OP_FSMOUNT] = {.str = {S_TEXT, S_DATA}, .slot = {L_OUT}, .max = {MAX_FS_OPTIONS, U32}},
    [PYC_OP_OPEN_TREE] = {.str = {S_TEXT_OR_NONE},
                          .slot = {L_IN_OR_NONE, L_OUT},
                          .flags = PYC_F_OPTIONAL | PYC_F_NO_SYMLINKS,
                          .max = {U32}},
    [PYC_OP_MOUNT_SETATTR] = {.slot = {L_IN, L_IN_OR_NONE},
                              .flags = PYC_F_RECURSIVE,
                              .max = {U64, U64, U32}},
    [PYC_OP_MOVE_MOUNT] = {.str = {S_PATH},
                           .slot = {L_IN, L_IN},
                           .flags = PYC_F_OPTIONAL | PYC_F_MAKE_DIR | PYC_F_MAKE_FILE |
                                    PYC_F_NO_SYMLINKS},
    [PYC_OP_ATTACH_ROOT] = {.str = {S_PATH}, .slot = {L_IN, L_OUT}},
    [PYC_OP_MKDIR] = {.str = {S_PATH},
                      .slot = {L_IN},
                      .flags = PYC_F_EXIST_OK | PYC_F_NO_SYMLINKS | PYC_F_MAKE_DIR,
                      .max = {07777}},
    [PYC_OP_MKNOD] = {.str = {S_PATH},
                      .slot = {L_IN},
                      .flags = PYC_F_EXIST_OK | PYC_F_NO_SYMLINKS | PYC_F_MAKE_DIR,
                      .max = {0177777, U32, U64}},
    [PYC_OP_SYMLINK] = {.str = {S_PATH, S_PATH},
                        .slot = {L_IN},
                        .flags = PYC_F_EXIST_OK | PYC_F_NO_SYMLINKS | PYC_F_MAKE_DIR},
    [PYC_OP_MASK] = {.str = {S_PATH},
                     .slot = {L_IN, L_IN, L_IN},
                     .flags = PYC_F_OPTIONAL | PYC_F_NO_SYMLINKS},
    [PYC_OP_READONLY] = {.str = {S_PATH},
                         .slot = {L_IN},
                         .flags = PYC_F_OPTIONAL | PYC_F_NO_SYMLINKS},
    [PYC_OP_PIVOT_ROOT] = {.slot = {L_IN}},
    [PYC_OP_CHDIR] = {.str = {S_ABSOLUTE}, .flags = PYC_F_MAKE_DIR, .max = {U64}},
    [PYC_OP_STDIO] = {.slot = {L_IN}, .late = 1, .max = {MAX_STDIO_FD}},
    [PYC_OP_TERMINAL] = {.slot = {L_IN, L_IN_OR_NONE},
                         .flags = PYC_F_CONSOLE,
                         .max = {0xffff0000ffffULL}},
    [PYC_OP_RLIMIT] = {.max = {15, U64, U64}},
    [PYC_OP_UMASK] = {.max = {0777}},
    [PYC_OP_KEYRING] = {.str = {S_TEXT_OR_NONE}},
    [PYC_OP_CAP_BOUND] = {.late = 1, .max = {U64}},
    [PYC_OP_SETGROUPS] = {.str = {S_DATA}, .late = 1, .max = {MAX_GROUPS}},
    [PYC_OP_SETUSER] = {.late = 1, .max = {U32 - 1, U32 - 1}}, /* (uid_t)-1 = leave as it is */
    [PYC_OP_CAPSET] = {.late = 1, .max = {U64, U64, U64}},
    [PYC_OP_CAP_AMBIENT] = {.late = 1, .max = {U64}},
    [PYC_OP_NO_NEW_PRIVS] = {.late = 1},
    [PYC_OP_SECCOMP] = {.str = {S_DATA},
                        .slot = {L_OUT_OR_NONE},
                        .late = 1,
                        .max = {PYC_MAX_FILTER, U32}},
    [PYC_OP_EXEC] = {.str = {S_DATA, S_DATA, S_DATA, S_DATA},
                     .slot = {L_IN_OR_NONE},
                     .late = 1,
                     .max = {PYC_MAX_BLOB_BYTES, PYC_MAX_BLOB_BYTES, PYC_MAX_BLOB_BYTES}},
    [PYC_OP_PDEATHSIG] = {.late = 1, .max = {64}},
    [PYC_OP_OPEN] = {.str = {S_PATH},
                     .slot = {L_IN, L_OUT},
                     .flags = PYC_F_OPTIONAL | PYC_F_NO_SYMLINKS,
                     .max = {U32}},
    [PYC_OP_CLOSE] = {.slot = {L_IN}, .late = 1},
    [PYC_OP_FSTYPE] = {.slot = {L_IN}, .max = {U32}},
    [PYC_OP_PERSONALITY] = {.max = {U32}},
    [PYC_OP_JOIN_TIMENS] = {.max = {0}},
};

struct arena {
    const char *text;
    uint32_t bytes;
    uint32_t scratch, scratch_end; /* the child writes here: nothing else may lie in it */
};

struct walk {
    struct arena arena;
    uint64_t open[(PYC_MAX_SLOTS + 63) / 64]; /* slots that hold an fd at this op */
    uint32_t fd_count, slot_count, op_count;
    uint64_t clone_flags;
    int started, filtered, dropped; /* seen: GATE(START), SECCOMP, SETUSER other than root */
};

static int in_range(uint64_t offset, uint64_t bytes, uint64_t begin, uint64_t end) {
    return offset >= begin && offset <= end && bytes <= end - offset;
}

/* The offset names a string: it ends inside the arena, and before or after the scratch. */
static int arena_has(const struct arena *a, uint32_t offset) {
    return offset < a->bytes && (offset < a->scratch || offset >= a->scratch_end);
}

static int check_data(const struct arena *a, uint32_t offset, uint64_t bytes, uint32_t align) {
    REFUSE_UNLESS(offset != 0);
    REFUSE_UNLESS(in_range(offset, bytes, 1, a->bytes));
    REFUSE_UNLESS((uintptr_t)(a->text + offset) % align == 0);
    REFUSE_UNLESS(offset >= a->scratch_end || offset + bytes <= a->scratch);
    return 0;
}

/* `count` strings one after the other, each shorter than max_bytes. */
static int check_block(const struct arena *a, uint32_t offset, uint64_t count, uint32_t max_bytes) {
    uint32_t at = offset, begin;
    uint32_t end = offset < a->scratch ? a->scratch : a->bytes;

    if (count == 0)
        return 0;
    REFUSE_UNLESS(offset != 0 && arena_has(a, offset));
    for (; count > 0; count--) {
        for (begin = at; at < end && a->text[at] != '\0'; at++)
            ;
        REFUSE_UNLESS(at < end);
        REFUSE_UNLESS(at - begin < max_bytes);
        at++;
    }
    return 0;
}

static int check_arena(const char *part, uint32_t bytes, uint32_t offset, uint32_t header_bytes,
                       uint32_t part_bytes, struct arena *ret_arena) {
    REFUSE_UNLESS(in_range(offset, bytes, header_bytes, part_bytes));
    REFUSE_UNLESS(bytes >= 1);
    REFUSE_UNLESS(part[offset] == '\0');
    REFUSE_UNLESS(part[offset + bytes - 1] == '\0');
    *ret_arena = (struct arena){part + offset, bytes, bytes, bytes};
    return 0;
}

static int check_strings(const struct walk *w, const struct pyc_op *op, const struct rule *rule) {
    const struct arena *a = &w->arena;

    for (int i = 0; i < 4; i++) {
        uint32_t offset = op->str[i];

        if (rule->str[i] == S_DATA)
            continue;
        REFUSE_UNLESS(rule->str[i] != 0 || offset == 0);
        REFUSE_UNLESS(arena_has(a, offset));
        REFUSE_UNLESS(rule->str[i] < S_TEXT || offset != 0);
        REFUSE_UNLESS(rule->str[i] < S_PATH || a->text[offset] != '\0');
        REFUSE_UNLESS(rule->str[i] != S_ABSOLUTE || a->text[offset] == '/');
    }
    return 0;
}

static int check_slots(struct walk *w, const struct pyc_op *op, const struct rule *rule) {
    for (int i = 0; i < 3; i++) {
        int32_t slot = op->slot[i];
        uint8_t use = rule->slot[i];
        uint64_t bit;

        if (slot == -1 && (use == 0 || use == L_IN_OR_NONE || use == L_OUT_OR_NONE))
            continue;
        REFUSE_UNLESS(use != 0);
        REFUSE_UNLESS(slot >= 0 && (uint32_t)slot < w->slot_count);
        bit = 1ULL << (slot % 64);
        if (use == L_IN || use == L_IN_OR_NONE) {
            REFUSE_UNLESS((w->open[slot / 64] & bit) != 0);
        } else {
            /* A received fd is replaced only after CLOSE: nobody loses one unknowingly. */
            REFUSE_UNLESS((uint32_t)slot >= w->fd_count || (w->open[slot / 64] & bit) == 0);
            w->open[slot / 64] |= bit;
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
        REFUSE_UNLESS(op->num[0] != 0 || op->str[1] == 0);
        return check_block(a, op->str[1], op->num[0], MAX_PATH);
    case PYC_OP_TERMINAL:
        REFUSE_UNLESS((op->num[0] & U32) <= 0xffff);
        return 0;
    case PYC_OP_RLIMIT:
        REFUSE_UNLESS(op->num[1] <= op->num[2]);
        return 0;
    case PYC_OP_SETGROUPS:
        if (op->num[0] == 0) {
            REFUSE_UNLESS(op->str[0] == 0);
            return 0;
        }
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

/* ---- the record ---------------------------------------------------------------------------- */

static int check_id(const char *id) {
    uint32_t n = 0, slashes = 0, part = 0; /* part: characters since the last slash */
    int dots = 1;                          /* the part so far is only dots */

    for (; id[n] != '\0'; n++) {
        char c = id[n];
        int letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');

        REFUSE_UNLESS(n < PYC_ID_BYTES - 1);
        if (c == '/') {
            REFUSE_UNLESS(part > 0 && !dots && slashes == 0);
            slashes++;
            part = 0;
            dots = 1;
            continue;
        }
        REFUSE_UNLESS(letter || c == '_' || c == '.' || c == '+' || c == '-');
        dots = dots && c == '.';
        part++;
    }
    REFUSE_UNLESS(part > 0 && !dots);
    return 0;
}

/* Absolute, not too long to append to, and without a ".." to climb by. */
static int check_path(const struct arena *a, uint32_t offset) {
    const char *path;
    uint32_t n;

    REFUSE_UNLESS(arena_has(a, offset));
    path = a->text + offset;
    REFUSE_UNLESS(path[0] == '/');
    for (n = 0; path[n] != '\0'; n++) {
        REFUSE_UNLESS(n < MAX_PATH - STATE_DIR_ROOM);
        REFUSE_UNLESS(!(path[n] == '/' && path[n + 1] == '.' && path[n + 2] == '.' &&
                        (path[n + 3] == '/' || path[n + 3] == '\0')));
    }
    return 0;
}

static int check_exit_op(const struct arena *a, const struct pyc_exit_op *op) {
    REFUSE_UNLESS(op->code >= PYC_EXIT_READ && op->code <= PYC_EXIT_WRITE);
    REFUSE_UNLESS(op->flags == 0);
    TRY(check_path(a, op->str[0]));
    REFUSE_UNLESS(arena_has(a, op->str[1]));
    REFUSE_UNLESS(op->code == PYC_EXIT_RMDIR ? op->str[1] == 0 : op->str[1] != 0);
    if (op->code == PYC_EXIT_READ) {
        /* The label is a line of its own in the collected text. */
        REFUSE_UNLESS(a->text[op->str[1]] != '\0');
        for (const char *p = a->text + op->str[1]; *p != '\0'; p++)
            REFUSE_UNLESS((unsigned char)*p > ' ' && *p != 0x7f);
    }
    return 0;
}

static int check_record(const struct pyc_record *r, uint64_t blob_bytes, uint32_t *ret_index) {
    const uint32_t known = PYC_R_LIFELINE | PYC_R_QUIET | PYC_R_PARK | PYC_R_TERMINAL | PYC_R_LOG |
                           PYC_R_EPHEMERAL;
    const struct pyc_exit_op *ops;
    struct arena a;

    REFUSE_UNLESS((uintptr_t)r % 8 == 0);
    REFUSE_UNLESS(blob_bytes >= sizeof *r && blob_bytes <= PYC_MAX_BLOB_BYTES);
    REFUSE_UNLESS(r->abi == PYC_ABI);
    REFUSE_UNLESS(r->record_bytes % 8 == 0 && r->record_bytes >= sizeof *r);
    REFUSE_UNLESS(r->record_bytes <= PYC_MAX_RECORD_BYTES && r->record_bytes <= blob_bytes);
    REFUSE_UNLESS((r->flags & ~known) == 0);
    REFUSE_UNLESS(r->pad == 0 && r->pad2 == 0);
    TRY(check_arena((const char *)r, r->arena_bytes, r->arena_offset, sizeof *r, r->record_bytes,
                    &a));
    REFUSE_UNLESS(arena_has(&a, r->id));
    TRY(check_id(a.text + r->id));
    if (r->state_dir != 0 || (r->flags & PYC_R_EPHEMERAL) == 0)
        TRY(check_path(&a, r->state_dir));
    if (r->log_path != 0 || (r->flags & PYC_R_LOG) != 0)
        TRY(check_path(&a, r->log_path));
    if (r->kill_path != 0)
        TRY(check_path(&a, r->kill_path));
    REFUSE_UNLESS(r->log_max_bytes <= INT64_MAX);
    REFUSE_UNLESS(r->log_max_files <= 1000);
    REFUSE_UNLESS(r->timeout_usec <= INT64_MAX / 1000); /* as nanoseconds it still fits */
    REFUSE_UNLESS(r->exit_op_count <= PYC_MAX_EXIT_OPS);
    REFUSE_UNLESS(r->exit_op_offset % 8 == 0);
    REFUSE_UNLESS(in_range(r->exit_op_offset, r->exit_op_count * sizeof *ops, sizeof *r,
                           r->record_bytes));
    ops = (const struct pyc_exit_op *)((const char *)r + r->exit_op_offset);
    for (uint32_t i = 0; i < r->exit_op_count; i++) {
        *ret_index = i;
        TRY(check_exit_op(&a, &ops[i]));
    }
    return 0;
}

int pyc_record_check(const void *blob, uint64_t blob_bytes, struct pyc_refusal *ret_refusal) {
    uint32_t index = 0;
    int line = check_record(blob, blob_bytes, &index);

    if (line == 0)
        return 0;
    *ret_refusal = (struct pyc_refusal){index, (uint32_t)line};
    return -EINVAL;
}
