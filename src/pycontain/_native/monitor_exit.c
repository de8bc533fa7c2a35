/* monitor_exit.c: the end of a container. In this order, so that a crash at any point leaves `live`
 * or `exit` on disk, never neither: last log bytes, exit ops, write `exit`, reap, tell, remove
 * `live`. What could not be removed then (a cgroup whose last process is still dying) is retried. */
#include "monitor.h"

#include <linux/ioctl.h>
#include <linux/wait.h>

enum { READ_CAP_BYTES = 16384, BUSY_TRIES = 7, AT_REMOVEDIR_ = 0x200,
       ORPHAN_WAIT_SEC = 5 };

/* include/uapi/linux/pidfd.h of Linux 6.15; Debian 12 has no such header. */
struct pidfd_info_ { uint64_t mask, cgroup; uint32_t ids[11]; int32_t exit_code; };
#define PIDFD_GET_INFO_ _IOWR(0xFF, 11, struct pidfd_info_)
#define PIDFD_INFO_EXIT_ 8ULL

/* The message under construction. There is one: nothing here is re-entered. */
static struct { struct pyc_exit head; uint8_t text[PYC_MAX_EXIT_BYTES - sizeof(struct pyc_exit)]; }
    message;

static void ending_from_wait_status(uint64_t status, struct ending *ret) {
    ret->known = true;
    ret->status = (int32_t)(status & 0x7f);
    ret->code = ret->status == 0 ? CLD_EXITED : (status & 0x80) != 0 ? CLD_DUMPED : CLD_KILLED;
    if (ret->status == 0)
        ret->status = (int32_t)(status >> 8 & 0xff);
}

/* How a process ended that is not our child: from its pidfd once it has been reaped (Linux 6.15),
 * from its zombie until then (`record`, may be NULL). The two sources exclude each other, so a process
 * that is reaped while we look is found by the second look at the first. */
bool ending_of_stranger(int pidfd, const struct pyc_record *record, struct ending *ret) {
    struct process_stat st;
    for (int look = 0; look < 2; look++) {
        struct pidfd_info_ info;
        memset(&info, 0, sizeof info);
        info.mask = PIDFD_INFO_EXIT_;
        if (PYC_SYS3(__NR_ioctl, pidfd, PIDFD_GET_INFO_, &info) >= 0 &&
            (info.mask & PIDFD_INFO_EXIT_) != 0) {
            ending_from_wait_status((uint32_t)info.exit_code, ret);
            return true;
        }
        if (record == NULL)
            return false;
        if (read_process_stat(record->pid, &st) >= 0 && st.state == 'Z' &&
            st.start_ticks == record->pid_start_ticks) {
            ending_from_wait_status(st.exit_code, ret);
            return true;
        }
    }
    return false;
}

static void append(const char *text, size_t bytes) {
    size_t room = sizeof message.text - message.head.text_bytes;
    if (bytes > room) {
        message.head.flags |= PYC_X_TRUNCATED;
        bytes = room;
    }
    memcpy(message.text + message.head.text_bytes, text, bytes);
    message.head.text_bytes += (uint32_t)bytes;
}

/* Appends "=label\n" and the text of a kernel file. A missing file is an empty text. */
static void collect(const char *path, const char *label) {
    uint32_t taken = 0;
    append("=", 1);
    append(label, strlen(label));
    append("\n", 1);
    int fd = (int)open_host(path, O_RDONLY | O_NONBLOCK, 0);
    while (fd >= 0) {
        size_t room = sizeof message.text - message.head.text_bytes;
        if (room > READ_CAP_BYTES - taken)
            room = READ_CAP_BYTES - taken;
        long n = PYC_SYS3(__NR_read, fd, message.text + message.head.text_bytes, room);
        if (room == 0)
            message.head.flags |= PYC_X_TRUNCATED;
        if (n <= 0)
            break;
        message.head.text_bytes += (uint32_t)n;
        taken += (uint32_t)n;
    }
    close_fd(&fd);
    if (taken > 0 && message.text[message.head.text_bytes - 1] != '\n')
        append("\n", 1);
}

/* Runs the exit ops; with `only_rmdir` it is the retry. Returns false while something is busy. */
static bool run_exit_ops(uint32_t index, bool only_rmdir) {
    const struct pyc_record *r = record_of(index);
    const struct pyc_exit_op *ops = (const void *)((const char *)r + r->exit_op_offset);
    bool done = true;
    for (uint32_t i = 0; i < r->exit_op_count; i++) {
        const char *path = record_text(r, ops[i].str[0]), *text = record_text(r, ops[i].str[1]);
        long rc;
        switch (ops[i].code) {
        case PYC_EXIT_READ:
            if (!only_rmdir)
                collect(path, text);
            break;
        case PYC_EXIT_WRITE:
            if (!only_rmdir)
                write_host_file(path, text);
            break;
        case PYC_EXIT_RMDIR:
            rc = PYC_SYS3(__NR_unlinkat, world.host_root_fd, path + 1, AT_REMOVEDIR_);
            done = done && rc != -EBUSY && rc != -ENOTEMPTY;
            break;
        default: break; /* pyc_record_check lets no other through */
        }
    }
    return done;
}

/* Frees the container, or keeps what is left of it until it can be freed. */
static void let_go(uint32_t index, bool removed) {
    struct container *c = &containers[index];
    c->phase = C_LEFTOVER;
    unwatch_close(&c->pidfd);
    /* Its cgroup's name may soon be another run's: nothing of this one may kill there any more. */
    c->owner = -1;
    c->deadline_usec = c->grace_usec = c->log_retry_usec = c->busy_usec = NEVER;
    if (!removed && c->busy_tries < BUSY_TRIES) {
        c->busy_usec = boottime_usec() + (1000ULL << c->busy_tries++); /* 1, 2, 4 .. 64 ms */
        wake_at(c->busy_usec);
    } else if (tty_quiet(index)) {
        container_free(index);
    }
}

/* Called at busy_usec, and when the last terminal output has been delivered. */
void retry_leftover(uint32_t index) { let_go(index, run_exit_ops(index, true)); }

static void fill_head(uint32_t index, const struct ending *e) {
    const struct slot *slot = slot_of(index);
    const struct rusage *u = &e->usage;
    memset(&message.head, 0, sizeof message.head);
    message.head = (struct pyc_exit){
        .abi = PYC_ABI, .kind = PYC_REP_EXIT,
        .flags = slot->exit_flags | (e->known ? 0 : (uint32_t)PYC_X_UNKNOWN),
        .code = e->code, .status = e->status, .pid = slot->record.pid,
        .started_usec = slot->record.started_usec, .ended_usec = realtime_usec(),
        .utime_usec = (uint64_t)u->ru_utime.tv_sec * SECOND_USEC + (uint64_t)u->ru_utime.tv_usec,
        .stime_usec = (uint64_t)u->ru_stime.tv_sec * SECOND_USEC + (uint64_t)u->ru_stime.tv_usec,
        .maxrss_bytes = (uint64_t)u->ru_maxrss * 1024,
        .minflt = (uint64_t)u->ru_minflt, .majflt = (uint64_t)u->ru_majflt,
        .inblock = (uint64_t)u->ru_inblock, .oublock = (uint64_t)u->ru_oublock,
        .nvcsw = (uint64_t)u->ru_nvcsw, .nivcsw = (uint64_t)u->ru_nivcsw};
    if (slot->started_monotonic_usec != 0)
        message.head.duration_usec = monotonic_usec() - slot->started_monotonic_usec;
}

/* Writes the message as `exit`, complete or not at all. If the disk or the directory is gone there
 * is nobody to complain to; who waits on a connection gets it all the same. */
static void write_exit(uint32_t index) {
    const struct container *c = &containers[index];
    if ((record_of(index)->flags & PYC_R_EPHEMERAL) != 0)
        return;
    int fd = (int)open_at(c->dir_fd, "exit.tmp", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0 && write_all(fd, &message, sizeof message.head + message.head.text_bytes) >= 0)
        PYC_SYS5(__NR_renameat2, c->dir_fd, "exit.tmp", c->dir_fd, "exit", 0);
    close_fd(&fd);
}

static void reap(uint32_t index) {
    struct ending ignored;
    if (containers[index].mine)
        wait_pidfd(P_PIDFD, containers[index].pidfd, WEXITED | WNOHANG, &ignored);
}

void container_ended(uint32_t index, const struct ending *e) {
    log_drain(index);
    fill_head(index, e);
    bool removed = run_exit_ops(index, false);
    write_exit(index);
    reap(index);
    record_of(index)->status = PYC_ST_EXITED;
    tell_followers(index, &message, sizeof message.head + message.head.text_bytes);
    live_remove(index);
    let_go(index, removed);
}

/* A spawn that came to nothing: no `exit`, because nothing has run. The exit ops remove what the
 * client made for it. The child, if there is one, has ended. */
void spawn_failed(uint32_t index, enum pyc_stage stage, long err, uint32_t op, uint32_t opcode) {
    struct pyc_reply failed = {.abi = PYC_ABI, .kind = PYC_REP_FAILED, .stage = stage,
                               .op_index = op, .opcode = opcode,
                               .err = (int32_t)(err < 0 ? -err : err)};
    message.head.text_bytes = 0;
    reap(index);
    bool removed = run_exit_ops(index, false);
    record_of(index)->status = PYC_ST_EXITED;
    if (containers[index].dir_fd >= 0)
        live_remove(index); /* before anybody hears of it: it may be started again at once */
    tell_followers(index, &failed, sizeof failed);
    let_go(index, removed);
}

/* A worker died while it started this, and so early that no program has been executed. Without
 * `exit` it is as if it had not been asked for; who waits is told that there is no such thing. */
void never_ran(uint32_t index) { spawn_failed(index, PYC_STAGE_REQUEST, -ENOENT, 0, 0); }

/* The child was killed while it still ran our code. */
static bool died_before_exec(uint32_t index, const struct ending *e) {
    struct process_stat st;
    return !containers[index].spoken && e->code != CLD_EXITED &&
           read_process_stat(record_of(index)->pid, &st) >= 0 && (st.flags & PF_FORKNOEXEC_) != 0;
}

static void child_ended(uint32_t index) {
    struct container *c = &containers[index];
    struct ending ending;
    status_ready(index); /* a report that came together with the end */
    /* WNOWAIT: until `exit` is written the zombie keeps what we know. */
    if (wait_pidfd(P_PIDFD, c->pidfd, WEXITED | WNOHANG | WNOWAIT, &ending) <= 0)
        return;
    if (c->failed_stage != 0)
        spawn_failed(index, (enum pyc_stage)c->failed_stage, c->failure.err, c->failure.op_index,
                     c->failure.opcode);
    else if (died_before_exec(index, &ending))
        spawn_failed(index, PYC_STAGE_DIED, ending.status, 0, 0);
    else
        container_ended(index, &ending);
}

/* The pidfd is readable: the process has ended. One that is the keeper's child is in its queue
 * (with its rusage); others we have to find out about. */
void pidfd_ready(uint32_t index) {
    struct container *c = &containers[index];
    struct ending ending;
    if (c->mine) {
        child_ended(index);
        return;
    }
    memset(&ending, 0, sizeof ending);
    if (c->keepers && c->phase != C_ORPHANED) {
        rewatch(c->pidfd, W_PIDFD, index, c->generation, EPOLLET);
        c->phase = C_ORPHANED;
        c->orphan_usec = boottime_usec() + ORPHAN_WAIT_SEC * SECOND_USEC;
        wake_at(c->orphan_usec);
        return;
    }
    if (c->keepers && c->orphan_usec != NEVER)
        return; /* EPOLLHUP after it was reaped; the word is in the queue */
    ending_of_stranger(c->pidfd, record_of(index), &ending);
    container_ended(index, &ending);
}

void keeper_told(const struct keeper_exit *told) {
    for (uint32_t i = 0; i < containers_high; i++) {
        const struct container *c = &containers[i];
        if (c->phase != C_FREE && c->phase != C_LEFTOVER && c->keepers &&
            record_of(i)->pid == told->pid) {
            if (told->executed || record_of(i)->status == PYC_ST_PARKED)
                container_ended(i, &told->ending);
            else
                never_ran(i);
            return;
        }
    }
}
