/* check.h: what plan_check.c and record_check.c share: offsets into an arena of strings.
 *
 * Each check returns 0 or its own line, which is what a refusal names. */
#ifndef PYCONTAIN_CHECK_H
#define PYCONTAIN_CHECK_H

#include "plan.h"

#define REFUSE_UNLESS(condition) do { if (!(condition)) return __LINE__; } while (0)
#define TRY(check) do { int line_ = (check); if (line_ != 0) return line_; } while (0)

#define MAX_PATH 4096U /* PATH_MAX, with the NUL */

struct arena {
    const char *text;
    uint32_t bytes;
    uint32_t scratch, scratch_end; /* the child writes here: nothing else may lie in it */
};

static inline int in_range(uint64_t offset, uint64_t bytes, uint64_t begin, uint64_t end) {
    return offset >= begin && offset <= end && bytes <= end - offset;
}

/* The offset names a string: it ends inside the arena, and before or after the scratch. */
static inline int arena_has(const struct arena *a, uint32_t offset) {
    return offset < a->bytes && (offset < a->scratch || offset >= a->scratch_end);
}

static inline int check_arena(const char *part, uint32_t bytes, uint32_t offset, uint32_t header_bytes,
                       uint32_t part_bytes, struct arena *ret_arena) {
    REFUSE_UNLESS(in_range(offset, bytes, header_bytes, part_bytes));
    REFUSE_UNLESS(bytes >= 1);
    REFUSE_UNLESS(part[offset] == '\0');
    REFUSE_UNLESS(part[offset + bytes - 1] == '\0');
    *ret_arena = (struct arena){part + offset, bytes, bytes, bytes};
    return 0;
}

#endif
