/* monitor_state.c: what of a container outlives its monitor, and how a new one takes it over.
 *
 * `live` in the state directory is the record, verbatim, with pid and status filled in. After the
 * worker's death the slots say the same and more, and the keeper has the descriptors; after the
 * death of both only the files are left. */
#include "monitor.h"

/* The fields of /proc/PID/stat that matter (proc_pid_stat(5)); the name in field 2 may hold
 * anything, so counting starts behind its last ")". */
long read_process_stat(int pid, struct process_stat *ret) {
    char text[1024], *at = pyc_put_text(text, "/proc/");
    at = pyc_put_decimal(at, (uint64_t)pid, 1);
    *pyc_put_text(at, "/stat") = '\0';
    int fd = (int)open_at(AT_FDCWD, text, O_RDONLY, 0);
    if (fd < 0)
        return fd;
    long n = PYC_SYS3(__NR_read, fd, text, sizeof text - 1);
    close_fd(&fd);
    if (n <= 0)
        return n < 0 ? n : -ESRCH;
    text[n] = '\0';
    for (at = text + n; at > text && *at != ')';)
        at--;
    memset(ret, 0, sizeof *ret);
    unsigned field = 2;
    for (; *at != '\0'; at++) {
        if (*at != ' ')
            continue;
        field++;
        if (field == 3)
            ret->state = at[1];
        else if (field == 4)
            ret->parent = (int32_t)pyc_decimal(at + 1);
        else if (field == 9)
            ret->flags = pyc_decimal(at + 1);
        else if (field == 22)
            ret->start_ticks = pyc_decimal(at + 1);
        else if (field == 52)
            ret->exit_code = pyc_decimal(at + 1);
    }
    return field >= 22 ? 0 : -EINVAL;
}

/* Writes `live`, complete or not at all; its descriptor stays open for the updates until exec. */
long live_write(uint32_t index) {
    struct container *c = &containers[index];
    const struct pyc_record *r = record_of(index);
    if ((r->flags & PYC_R_EPHEMERAL) != 0)
        return 0;
    PYC_SYS3(__NR_unlinkat, c->dir_fd, "exit", 0); /* of an earlier run of the same container */
    int fd = (int)open_at(c->dir_fd, "live.tmp", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0)
        return fd;
    long rc = write_all(fd, r, r->record_bytes);
    if (rc >= 0)
        rc = PYC_SYS5(__NR_renameat2, c->dir_fd, "live.tmp", c->dir_fd, "live", 0);
    if (rc < 0)
        close_fd(&fd);
    c->live_fd = fd;
    return rc;
}

/* Brings pid and status in `live` up to date: one write within a page, which kill -9 can't split. */
void live_update(uint32_t index) {
    struct container *c = &containers[index];
    if ((record_of(index)->flags & PYC_R_EPHEMERAL) != 0)
        return;
    if (c->live_fd < 0)
        c->live_fd = (int)open_at(c->dir_fd, "live", O_WRONLY, 0);
    if (c->live_fd >= 0)
        PYC_SYS4(__NR_pwrite64, c->live_fd, record_of(index), sizeof(struct pyc_record), 0);
    if (record_of(index)->status == PYC_ST_RUNNING)
        close_fd(&c->live_fd);
}

void live_remove(uint32_t index) {
    if ((record_of(index)->flags & PYC_R_EPHEMERAL) == 0)
        PYC_SYS3(__NR_unlinkat, containers[index].dir_fd, "live", 0);
}

/* Its worker died in the moment of its start: whether it runs is seen from the process itself. */
static void note_exec(uint32_t index, const struct process_stat *st) {
    struct pyc_record *r = record_of(index);
    if (r->status == PYC_ST_RUNNING || (st->flags & PF_FORKNOEXEC_) != 0)
        return;
    r->status = PYC_ST_RUNNING;
    r->pid_start_ticks = st->start_ticks;
    if (r->timeout_usec != 0 && r->deadline_usec == 0)
        r->deadline_usec = boottime_usec() + r->timeout_usec;
    if (r->state_dir != 0)
        live_update(index);
}

/* Takes over the container that slot `index` describes; its entry is fresh. */
static void adopt(uint32_t index) {
    struct container *c = &containers[index];
    struct pyc_record *r = record_of(index);
    struct process_stat st = {0};
    int *stored = world.stored[index];
    c->phase = C_RUNNING;
    c->spoken = true;
    if (r->state_dir != 0 && c->dir_fd < 0)
        c->dir_fd = (int)open_host(record_text(r, r->state_dir), O_PATH | O_DIRECTORY, 0);
    if (r->pid > 0)
        c->pidfd = (int)monitor_pidfd_open(r->pid);
    /* A pidfd first, then the look at who it is: the pid can't change hands in between. */
    bool same = c->pidfd >= 0 && read_process_stat(r->pid, &st) >= 0 &&
                (r->pid_start_ticks == 0 || st.start_ticks == r->pid_start_ticks);
    /* A zero start time is known only within the keeper's family: there it is our child. */
    if (same && r->pid_start_ticks == 0 && st.parent != world.keeper_pid)
        same = false;
    c->keepers = world.restarted && (!same || st.parent == world.keeper_pid);
    if (!same)
        close_fd(&c->pidfd);
    if ((r->flags & PYC_R_TERMINAL) != 0 && stored[STORED_MASTER] > 0) {
        c->master_fd = stored[STORED_MASTER] - 1;
        tty_opened(index);
    }
    c->out.fifo_fd = stored[STORED_OUT] - 1;
    c->err.fifo_fd = stored[STORED_ERR] - 1;
    if ((r->flags & PYC_R_LOG) != 0)
        log_open(index);
    if (!same) {
        c->phase = C_ORPHANED;
        return;
    }
    watch(c->pidfd, W_PIDFD, index, c->generation, EPOLLIN);
    note_exec(index, &st);
    if (r->status == PYC_ST_PARKED && stored[STORED_STATUS] > 0) {
        c->phase = C_PARKED;
        c->status_fd = stored[STORED_STATUS] - 1;
        watch(c->status_fd, W_STATUS, index, c->generation, EPOLLIN);
    } else if (r->status != PYC_ST_RUNNING) {
        container_kill(index, 0); /* half made, and whoever asked for it has lost us */
    } else if ((r->flags & PYC_R_EPHEMERAL) != 0) {
        container_kill(index, PYC_X_OWNER_GONE); /* only its connection knew of it */
    } else if ((r->flags & PYC_R_LIFELINE) != 0) {
        c->grace_usec = boottime_usec() + 5 * SECOND_USEC; /* for its owner to come back */
        wake_at(c->grace_usec);
    }
    if (r->deadline_usec != 0) {
        c->deadline_usec = r->deadline_usec;
        wake_at(r->deadline_usec);
    }
}

/* Gives up on what has ended and of which nobody can say how; the pin (see runtime/launcher.py)
 * may still know. */
static void settle_orphans(void) {
    for (uint32_t i = 0; i < containers_high; i++) {
        if (containers[i].phase != C_ORPHANED)
            continue;
        if (world.restarted && record_of(i)->pid == 0) { /* clone3 would have stored it */
            never_ran(i);
            continue;
        }
        struct ending ending;
        memset(&ending, 0, sizeof ending);
        int pin = containers[i].dir_fd < 0
                      ? -1
                      : (int)open_at(containers[i].dir_fd, "pidfd", O_RDONLY | O_NONBLOCK, 0);
        if (pin >= 0)
            ending_of_stranger(pin, NULL, &ending);
        close_fd(&pin);
        container_ended(i, &ending);
    }
}

/* Its end was recorded by the monitor before us, which then died: only the tidying is left. */
static void adopt_ended(uint32_t index) {
    struct container *c = &containers[index];
    const struct pyc_record *r = record_of(index);
    if (r->state_dir != 0 && c->dir_fd < 0)
        c->dir_fd = (int)open_host(record_text(r, r->state_dir), O_PATH | O_DIRECTORY, 0);
    c->out.fifo_fd = world.stored[index][STORED_OUT] - 1; /* to be closed, here and by the keeper */
    c->err.fifo_fd = world.stored[index][STORED_ERR] - 1;
    c->master_fd = world.stored[index][STORED_MASTER] - 1;
    live_remove(index);
    c->phase = C_LEFTOVER;
    retry_leftover(index);
}

/* Whether the dead worker wrote `exit`, which it did last but for reaping and telling. Only after a
 * clone: until then the file is an earlier run's. */
static bool exit_written(uint32_t index) {
    struct container *c = &containers[index];
    const struct pyc_record *r = record_of(index);
    if (r->pid == 0 || r->state_dir == 0 || (r->flags & PYC_R_EPHEMERAL) != 0)
        return false;
    c->dir_fd = (int)open_host(record_text(r, r->state_dir), O_PATH | O_DIRECTORY, 0);
    int fd = c->dir_fd < 0 ? -1 : (int)open_at(c->dir_fd, "exit", O_PATH, 0);
    bool written = fd >= 0;
    close_fd(&fd);
    return written;
}

/* After a worker's death: its slots are intact, and the keeper is the parent of its children. */
void adopt_from_slots(void) {
    for (uint32_t i = 0; i < world.shared->slots_high; i++) {
        int32_t status = record_of(i)->status;
        if (status == 0)
            continue;
        container_at(i);
        /* Its owner may be removing it by now: nothing of it may be written again. */
        if (status == PYC_ST_EXITED || exit_written(i))
            adopt_ended(i);
        else
            adopt(i);
    }
    exits_ready();
    settle_orphans();
}

/* ---- from files ---- */

struct dirent64_ { uint64_t inode; int64_t offset; uint16_t bytes; uint8_t type; char name[]; };

/* Loads `live` of one state directory into a slot and adopts it. */
static void adopt_file(int dir_fd) {
    struct pyc_refusal refusal;
    int fd = (int)open_at(dir_fd, "live", O_RDONLY | O_NONBLOCK, 0);
    int32_t entry = fd < 0 ? -1 : container_new();
    if (entry >= 0) {
        uint32_t index = (uint32_t)entry;
        struct slot *slot = slot_of(index);
        long n = PYC_SYS3(__NR_read, fd, &slot->record, PYC_MAX_RECORD_BYTES);
        slot->exit_flags = 0;
        slot->started_monotonic_usec = 0;
        int exit_fd = (int)open_at(dir_fd, "exit", O_PATH, 0);
        if (n < 0 || pyc_record_check(&slot->record, (uint64_t)n, &refusal) != 0 ||
            slot->record.status == 0)
            container_free(index); /* no record: that container is lost, the others are not */
        else if (exit_fd >= 0)
            adopt_ended(index);
        else
            adopt(index);
        close_fd(&exit_fd);
    }
    close_fd(&fd);
}

/* Calls `visit` with an O_PATH descriptor of each directory in `dir_fd`/`name`. */
static void each_directory(int dir_fd, const char *name, void (*visit)(int)) {
    _Alignas(8) uint8_t buffer[2048];
    int fd = (int)open_at(dir_fd, name, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return;
    long n;
    while ((n = PYC_SYS3(__NR_getdents64, fd, buffer, sizeof buffer)) > 0) {
        for (long at = 0; at < n;) {
            const struct dirent64_ *entry = (const void *)(buffer + at);
            at += entry->bytes;
            if (entry->name[0] == '.')
                continue;
            int child = (int)open_at(fd, entry->name, O_PATH | O_DIRECTORY, 0);
            if (child >= 0)
                visit(child);
            close_fd(&child);
        }
    }
    close_fd(&fd);
}

static void adopt_container(int dir_fd) {
    adopt_file(dir_fd);
    each_directory(dir_fd, "exec", adopt_file);
}

/* After the death of keeper and worker. */
void adopt_from_files(void) {
    each_directory(world.state_fd, "containers", adopt_container);
    settle_orphans();
}
