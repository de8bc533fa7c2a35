/* record_check.c: everything that the monitor relies on in a record, be it from a client or from a
 * `live` file that an earlier monitor wrote. The same rules as in plan_check.c.
 */
#include "check.h"

#include <linux/errno.h>

#define MAX_NAME_ROOM 256U /* what the monitor may append to a path */

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
        REFUSE_UNLESS(n < MAX_PATH - MAX_NAME_ROOM);
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
