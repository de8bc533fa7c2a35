/* plan_fuzz.c: mutate a valid blob and check that whatever the checks accept is safe to execute.
 *
 * usage: plan_fuzz BLOB FDS ITERATIONS [SEED]     built with ASan and UBSan by asan.py
 *
 * Each mutant lies in a heap block of exactly its size, so a read beside it stops the program. An
 * accepted plan is then used as child.c uses it: every string is measured, every array read, the
 * argv and environment pointers are written into the scratch and followed. Deterministic: the same
 * seed gives the same mutants.
 */
#include "plan.h"
#include "sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

static uint64_t next(void) { /* xorshift64* (Vigna, 2016) */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717ULL;
}

static uint64_t below(uint64_t n) { return next() % n; }

static uint32_t interesting(uint32_t size) {
    const uint32_t values[] = {0,          1,          2,      7,        8,          0x7fffffff,
                               0x80000000, 0xffffffff, size,   size - 1, size - 8,   size + 1,
                               0xfffffff8, PYC_MAX_OPS, 64,    104,      0x10000000, PYC_OP_EXEC};

    switch (below(3)) {
    case 0: return values[below(sizeof values / sizeof *values)];
    case 1: return (uint32_t)below(size);
    default: return (uint32_t)below(48);
    }
}

static size_t mutate(unsigned char *blob, size_t size, size_t plan_at) {
    for (uint64_t n = 1 + below(4); n > 0; n--) {
        size_t from = below(2) ? plan_at : 0;
        size_t at = from + below(size - from);

        switch (below(6)) {
        case 0: blob[at] ^= (unsigned char)(1u << below(8)); break;
        case 1: blob[at] = (unsigned char)next(); break;
        case 2:
        case 3: {
            uint32_t value = interesting((uint32_t)size), old;
            at = at / 4 * 4;
            memcpy(&old, blob + at, sizeof old);
            value = below(3) ? value : old + value - 4; /* a neighbour of what was there */
            memcpy(blob + at, &value, sizeof value);
            break;
        }
        case 4: { /* an op over another */
            size_t ops = plan_at + sizeof(struct pyc_plan), count = (size - ops) / 64 / 2;
            memmove(blob + ops + 64 * below(count), blob + ops + 64 * below(count), 64);
            break;
        }
        default:
            if (below(8) == 0)
                size = below(size) + 1;
        }
        if (size <= plan_at + sizeof(struct pyc_plan) + 256)
            break;
    }
    return size;
}

static volatile size_t sink;

static const char *scratch, *scratch_end; /* what the child will write over */

static void use(const char *data, size_t bytes) {
    if (data < scratch_end && data + bytes > scratch)
        abort();
    sink += bytes;
}

static void use_string(const char *arena, uint32_t offset) {
    use(arena + offset, strlen(arena + offset) + 1);
}

static char **use_block(char **array, char *block, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        array[i] = block;
        use(block, strlen(block) + 1);
        block += strlen(block) + 1;
    }
    array[count] = NULL;
    return array + count + 1;
}

static void use_bytes(const char *data, uint64_t bytes) {
    use(data, bytes);
    for (uint64_t i = 0; i < bytes; i++)
        sink += (unsigned char)data[i];
}

static void use_exec(char *arena, const struct pyc_op *op) {
    uint64_t argc = op->num[0], envc = op->num[1], paths = op->num[2];
    char **argv = (char **)(void *)(arena + op->str[3]);
    char **envp = use_block(argv, arena + op->str[0], argc);
    char *path = arena + op->str[2];

    use_block(envp, arena + op->str[1], envc);
    for (uint64_t i = 0; i < argc; i++)
        sink += strlen(argv[i]);
    for (uint64_t i = 0; i < envc; i++)
        sink += strlen(envp[i]);
    for (uint64_t i = 0; i < paths; i++)
        path += strlen(path) + 1;
    if (op->slot[0] < 0 && paths == 0)
        abort();
}

static void use_plan(char *plan_bytes, uint32_t fds) {
    struct pyc_plan *plan = (struct pyc_plan *)(void *)plan_bytes;
    char *arena = plan_bytes + plan->arena_offset;
    struct pyc_op *ops = (struct pyc_op *)(void *)(plan_bytes + plan->op_offset);
    const struct pyc_op *exec = &ops[plan->op_count - 1];
    int table[PYC_MAX_SLOTS];

    scratch = arena + exec->str[3];
    scratch_end = scratch + 8 * (exec->num[0] + exec->num[1] + 2);
    memset(table, -1, sizeof table);
    for (uint32_t i = 0; i < fds; i++)
        table[i] = (int)i;
    use_string(arena, plan->uid_map);
    use_string(arena, plan->gid_map);
    use_string(arena, plan->setgroups);
    for (uint32_t i = 0; i < plan->op_count; i++) {
        struct pyc_op *op = &ops[i];

        for (int s = 0; s < 3; s++)
            if (op->slot[s] >= 0)
                table[op->slot[s]] ^= 1;
        if (op->code == PYC_OP_EXEC) {
            if (i != plan->op_count - 1)
                abort();
            use_exec(arena, op);
        } else if (op->code == PYC_OP_SECCOMP) {
            use_bytes(arena + op->str[0], op->num[0] * 8);
        } else if (op->code == PYC_OP_SETGROUPS) {
            use_bytes(arena + op->str[0], op->num[0] * 4);
        } else {
            char *block = arena + op->str[1];

            for (int s = 0; s < 4; s++)
                use_string(arena, op->str[s]);
            for (uint64_t n = 0; op->code == PYC_OP_FSMOUNT && n < op->num[0]; n++)
                block += strlen(block) + 1;
        }
    }
}

static void use_record(const char *blob) {
    const struct pyc_record *r = (const struct pyc_record *)(const void *)blob;
    const char *arena = blob + r->arena_offset;
    const struct pyc_exit_op *ops = (const void *)(blob + r->exit_op_offset);

    scratch = scratch_end = NULL;
    if (strlen(arena + r->id) >= PYC_ID_BYTES || strstr(arena + r->state_dir, "/../"))
        abort();
    use_string(arena, r->log_path);
    use_string(arena, r->kill_path);
    for (uint32_t i = 0; i < r->exit_op_count; i++) {
        use_string(arena, ops[i].str[0]);
        use_string(arena, ops[i].str[1]);
    }
}

int main(int argc, char **argv) {
    static unsigned char sample[1 << 20];
    unsigned long accepted = 0, records = 0;

    if (argc < 4)
        return 2;
    FILE *file = fopen(argv[1], "rb");
    if (file == NULL)
        return 2;
    size_t size = fread(sample, 1, sizeof sample, file);
    fclose(file);
    uint32_t fds = (uint32_t)atoi(argv[2]);
    size_t plan_at = ((struct pyc_record *)(void *)sample)->record_bytes;
    state = argc > 4 ? strtoull(argv[4], NULL, 0) : 0x9e3779b97f4a7c15ULL;

    unsigned long iterations = strtoul(argv[3], NULL, 0);
    for (unsigned long i = 0; i < iterations; i++) {
        static unsigned char work[1 << 20];
        struct pyc_refusal refusal = {0, 0};

        memcpy(work, sample, size);
        size_t bytes = i == 0 ? size : mutate(work, size, plan_at);
        char *blob = malloc(bytes);
        memcpy(blob, work, bytes);
        if (pyc_record_check(blob, bytes, &refusal) == 0) {
            uint32_t at = ((struct pyc_record *)(void *)blob)->record_bytes;
            char *plan = malloc(bytes - at);

            records++;
            use_record(blob);
            memcpy(plan, blob + at, bytes - at);
            if (pyc_plan_check(plan, bytes - at, fds, &refusal) == 0) {
                accepted++;
                use_plan(plan, fds);
            }
            free(plan);
        }
        if (i == 0 && accepted != 1) {
            fprintf(stderr, "the sample is refused: op %u, line %u\n", refusal.op_index,
                    refusal.line);
            return 1;
        }
        free(blob);
    }
    printf("%lu mutants, %lu records and %lu plans accepted\n", iterations, records, accepted);
    return 0;
}
