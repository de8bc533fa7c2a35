/* Runs monitor_cri.c hosted, under the sanitizers, on buffers of exactly the right size.
 *
 *   harness ROOM SECONDS NANOSECONDS < raw > log      ROOM = bytes of the output buffer
 *
 * libc's headers and the kernel's, which monitor.h needs, do not go together. */
#include "monitor.h"

extern void *malloc(size_t), free(void *);
extern long read(int, void *, size_t), write(int, const void *, size_t);

enum { MOST_BYTES = 1 << 22 };

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    uint32_t room = (uint32_t)pyc_decimal(argv[1]), bytes = 0, used = 0;
    char *prefix = malloc(CRI_PREFIX_BYTES);
    uint32_t prefix_bytes = cri_prefix(prefix, pyc_decimal(argv[2]),
                                       (uint32_t)pyc_decimal(argv[3]), "stdout");
    uint8_t *all = malloc(MOST_BYTES);
    for (long n; (n = read(0, all + bytes, MOST_BYTES - bytes)) > 0;)
        bytes += (uint32_t)n;
    for (uint32_t at = 0; at < bytes; at += used) {
        uint32_t left = bytes - at < IO_BYTES ? bytes - at : IO_BYTES;
        uint8_t *raw = malloc(left), *out = malloc(room);
        for (uint32_t i = 0; i < left; i++)
            raw[i] = all[at + i];
        uint32_t made = cri_lines(raw, left, &used, prefix, prefix_bytes, out, room);
        for (uint32_t done = 0; done < made;)
            done += (uint32_t)write(1, out + done, made - done);
        free(raw);
        free(out);
        if (used == 0)
            return 3; /* no progress */
    }
    free(all);
    free(prefix);
    return 0;
}
