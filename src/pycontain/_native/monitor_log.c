/* monitor_log.c: what a container writes, from its FIFO to its log, each byte exactly once even if
 * this process is killed at any instruction.
 *
 *   1  log size -> first 8 bytes of the spool file      (the spool is empty: nothing is pending)
 *   2  splice: FIFO -> spool                            one call takes the bytes out and keeps them
 *   3  spool -> formatted -> appended to the log
 *   4  truncate the spool to nothing
 *
 * A worker that finds more than 8 bytes in a spool was preceded by one that died in 3: it cuts the
 * log back to the saved size and does 3 and 4 again. Read and write would not do: between them the
 * bytes exist only in the memory of a process that may be killed.
 *
 * A log that can't be written (its disk is full) is back pressure: the bytes stay in the spool and
 * in the FIFO, the container waits in write(2), and every second we try again. */
#include "monitor.h"

#include <linux/stat.h>
#include <linux/time.h>
#include <linux/time_types.h>

enum { SPOOL_HEAD_BYTES = 8, SPLICE_NONBLOCK_ = 2, SEEK_END_ = 2, DRAIN_ROUNDS = 1024,
       DEFAULT_MAX_FILES = 2, PATH_ROOM = 4096 };
static const uint64_t default_max_bytes = 16777216;

static uint8_t raw[IO_BYTES], formatted[2 * IO_BYTES];

static enum watch_kind kind_of(uint32_t index, const struct stream *s) {
    return s == &containers[index].out ? W_OUT : W_ERR;
}

static const char *name_of(uint32_t index, const struct stream *s) {
    return s == &containers[index].out ? "stdout" : "stderr";
}

static long open_log(uint32_t index) {
    const struct pyc_record *r = record_of(index);
    long fd = open_host(record_text(r, r->log_path), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW,
                        0600);
    containers[index].log_fd = fd < 0 ? -1 : (int)fd;
    return fd < 0 ? fd : 0;
}

/* "PATH" for 0, "PATH.N" for others; without the leading slash, to be resolved from the host's. */
static const char *rotated(char *room, const char *path, uint32_t number) {
    char *at = pyc_put_text(room, path + 1);
    if (number > 0) {
        *at++ = '.';
        at = pyc_put_decimal(at, number, 1);
    }
    *at = '\0';
    return room;
}

/* A full log becomes .1, .1 becomes .2, and the oldest goes. Only between batches, so that a saved
 * size always speaks of the file that is there. */
static void rotate(uint32_t index) {
    static char from[PATH_ROOM], to[PATH_ROOM];
    struct container *c = &containers[index];
    const struct pyc_record *r = record_of(index);
    const char *path = record_text(r, r->log_path);
    uint64_t limit = r->log_max_bytes != 0 ? r->log_max_bytes : default_max_bytes;
    uint32_t files = r->log_max_files != 0 ? r->log_max_files : DEFAULT_MAX_FILES;
    long size = PYC_SYS3(__NR_lseek, c->log_fd, 0, SEEK_END_);
    if (size < 0 || (uint64_t)size < limit || strlen(path) + 16 > PATH_ROOM)
        return;
    if (files == 1) {
        PYC_SYS2(__NR_ftruncate, c->log_fd, 0);
        return;
    }
    for (uint32_t i = files - 1; i > 0; i--)
        PYC_SYS5(__NR_renameat2, world.host_root_fd, rotated(from, path, i - 1),
                 world.host_root_fd, rotated(to, path, i), 0);
    close_fd(&c->log_fd);
    open_log(index);
}

/* Appends raw bytes as records. Returns 0 or -errno; the caller cuts back what got written. */
static long append_records(uint32_t index, const char *stream, const uint8_t *bytes,
                           uint32_t count) {
    char prefix[CRI_PREFIX_BYTES];
    struct __kernel_timespec now = {0, 0};
    PYC_SYS2(__NR_clock_gettime, CLOCK_REALTIME, &now);
    uint32_t prefix_bytes = cri_prefix(prefix, (uint64_t)now.tv_sec, (uint32_t)now.tv_nsec, stream);
    while (count > 0) {
        uint32_t used;
        uint32_t made = cri_lines(bytes, count, &used, prefix, prefix_bytes, formatted,
                                  sizeof formatted);
        long rc = write_all(containers[index].log_fd, formatted, made);
        if (rc < 0)
            return rc;
        bytes += used;
        count -= used;
    }
    return 0;
}

static void stuck(uint32_t index) {
    struct container *c = &containers[index];
    struct stream *streams[2] = {&c->out, &c->err};
    c->log_stuck = true;
    c->log_retry_usec = boottime_usec() + SECOND_USEC;
    wake_at(c->log_retry_usec);
    for (unsigned i = 0; i < 2; i++)
        if (streams[i]->fifo_fd >= 0)
            rewatch(streams[i]->fifo_fd, kind_of(index, streams[i]), index, c->generation,
                    EPOLLET); /* hang-up is reported whatever one asks for: once, then */
}

/* Steps 3 and 4 for what the spool holds. Returns false if the log can't take it. */
static bool empty_spool(uint32_t index, struct stream *s, uint64_t saved_size) {
    long n = PYC_SYS4(__NR_pread64, s->spool_fd, raw, sizeof raw, SPOOL_HEAD_BYTES);
    if (n > 0 && (containers[index].log_fd < 0 ||
                  append_records(index, name_of(index, s), raw, (uint32_t)n) < 0)) {
        if (containers[index].log_fd >= 0)
            PYC_SYS2(__NR_ftruncate, containers[index].log_fd, saved_size);
        stuck(index);
        return false;
    }
    PYC_SYS2(__NR_ftruncate, s->spool_fd, 0);
    return true;
}

/* Finishes what a dead worker, or a full disk, left in the spool. */
static bool recover(uint32_t index, struct stream *s) {
    uint64_t saved = 0;
    long size = PYC_SYS3(__NR_lseek, s->spool_fd, 0, SEEK_END_);
    if (size <= SPOOL_HEAD_BYTES)
        return true;
    PYC_SYS4(__NR_pread64, s->spool_fd, &saved, sizeof saved, 0);
    long log_size = PYC_SYS3(__NR_lseek, containers[index].log_fd, 0, SEEK_END_);
    if (log_size > 0 && (uint64_t)log_size > saved)
        PYC_SYS2(__NR_ftruncate, containers[index].log_fd, saved);
    return empty_spool(index, s, saved);
}

/* One batch. Returns how many bytes went from the FIFO to the log, 0 when there are none. */
static long batch(uint32_t index, struct stream *s) {
    struct container *c = &containers[index];
    int64_t offset = SPOOL_HEAD_BYTES;
    if (c->log_fd < 0 && open_log(index) < 0) {
        stuck(index);
        return 0;
    }
    rotate(index);
    long size = PYC_SYS3(__NR_lseek, c->log_fd, 0, SEEK_END_);
    uint64_t saved = size < 0 ? 0 : (uint64_t)size;
    if (PYC_SYS4(__NR_pwrite64, s->spool_fd, &saved, sizeof saved, 0) != sizeof saved) {
        stuck(index);
        return 0;
    }
    long n = PYC_SYS6(__NR_splice, s->fifo_fd, 0, s->spool_fd, &offset, sizeof raw,
                      SPLICE_NONBLOCK_);
    if (n > 0 && !empty_spool(index, s, saved))
        return 0;
    if (n <= 0)
        PYC_SYS2(__NR_ftruncate, s->spool_fd, 0);
    return n;
}

void log_pump(uint32_t index, struct stream *stream) {
    if (containers[index].log_stuck)
        return;
    /* Nobody has it open for writing: edge-triggered from here on, or it would be reported for
     * ever. The container itself holds it both ways, so this is its last moment, or a restart. */
    if (batch(index, stream) == 0 && stream->fifo_fd >= 0 && !containers[index].log_stuck)
        rewatch(stream->fifo_fd, kind_of(index, stream), index, containers[index].generation,
                EPOLLIN | EPOLLET);
}

/* All that the FIFOs, or the terminal, still hold is in the log. Bounded: a process that outlives
 * the container's first could write for ever. */
void log_drain(uint32_t index) {
    struct container *c = &containers[index];
    struct stream *streams[2] = {&c->out, &c->err};
    tty_drain(index);
    for (unsigned i = 0; i < 2; i++) {
        if (streams[i]->fifo_fd < 0)
            continue;
        if (c->log_stuck) {
            c->log_stuck = false;
            if (!recover(index, streams[i]))
                continue;
        }
        for (unsigned round = 0; round < DRAIN_ROUNDS && batch(index, streams[i]) > 0; round++)
            ;
    }
}

void log_retry(uint32_t index) {
    struct container *c = &containers[index];
    struct stream *streams[2] = {&c->out, &c->err};
    c->log_stuck = false;
    if (c->log_fd < 0 && open_log(index) < 0) {
        stuck(index);
        return;
    }
    for (unsigned i = 0; i < 2 && !c->log_stuck; i++)
        if (streams[i]->fifo_fd >= 0)
            recover(index, streams[i]);
    for (unsigned i = 0; i < 2 && !c->log_stuck; i++)
        if (streams[i]->fifo_fd >= 0)
            rewatch(streams[i]->fifo_fd, kind_of(index, streams[i]), index, c->generation, EPOLLIN);
}

/* Terminal output, already on its way to whoever is attached. It comes from a terminal's buffer,
 * which can't be spliced: a worker killed right here loses this one read. */
void log_terminal(uint32_t index, const uint8_t *bytes, uint32_t count) {
    if ((record_of(index)->flags & PYC_R_LOG) == 0)
        return;
    if (containers[index].log_fd < 0 && open_log(index) < 0)
        return;
    rotate(index);
    append_records(index, "stdout", bytes, count);
}

static long open_stream(uint32_t index, struct stream *s, const char *fifo, const char *spool,
                        enum stored which) {
    struct container *c = &containers[index];
    bool fresh = s->fifo_fd < 0;
    if (fresh) /* else the keeper has kept it, with the bytes in it */
        s->fifo_fd = (int)open_at(c->dir_fd, fifo, O_RDONLY | O_NONBLOCK, 0);
    if (s->fifo_fd < 0) {
        int err = s->fifo_fd;
        s->fifo_fd = -1;
        return err;
    }
    if (fresh)
        keep_fd(index, which, s->fifo_fd);
    long fd = open_at(c->dir_fd, spool, O_RDWR | O_CREAT, 0600);
    s->spool_fd = fd < 0 ? -1 : (int)fd;
    if (fd < 0)
        return fd;
    if (!recover(index, s))
        return 0; /* stuck: watched from the retry on */
    return watch(s->fifo_fd, kind_of(index, s), index, c->generation, EPOLLIN);
}

/* Opens the log and, unless the output is a terminal's, the FIFOs. */
long log_open(uint32_t index) {
    struct container *c = &containers[index];
    long rc = open_log(index);
    if (rc < 0 || (record_of(index)->flags & PYC_R_TERMINAL) != 0)
        return rc;
    rc = open_stream(index, &c->out, "out", "out.spool", STORED_OUT);
    return rc < 0 ? rc : open_stream(index, &c->err, "err", "err.spool", STORED_ERR);
}
