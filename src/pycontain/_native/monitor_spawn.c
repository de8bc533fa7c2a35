/* monitor_spawn.c: from a SPAWN request to a process that has executed: load and check the blob,
 * clone3, id maps, and what the child reports on its status socket. */
#include "monitor.h"

#include <asm/signal.h>
#include <linux/sched.h>
#include <linux/mman.h>

enum { AF_UNIX_ = 1, SOCK_SEQPACKET_ = 5, SOCK_CLOEXEC_ = 0x80000 };

struct blob { uint8_t *at; uint64_t bytes; };

static const char *plan_text(const struct pyc_plan *plan, uint32_t offset) {
    return (const char *)plan + plan->arena_offset + offset;
}

/* Copies the memfd into private memory: what has been checked can't change any more, and a client
 * that truncates the file can't make us fault. */
static long load_blob(int memfd, struct blob *ret) {
    struct stat st;
    long rc = PYC_SYS2(__NR_fstat, memfd, &st);
    if (rc < 0)
        return rc;
    if ((st.st_mode & 0170000) != 0100000 || st.st_size < (long)sizeof(struct pyc_record) ||
        st.st_size > PYC_MAX_BLOB_BYTES)
        return -EINVAL;
    ret->bytes = (uint64_t)st.st_size;
    ret->at = map_memory(ret->bytes, MAP_PRIVATE | MAP_POPULATE);
    if (ret->at == NULL)
        return -ENOMEM;
    rc = PYC_SYS4(__NR_pread64, memfd, ret->at, ret->bytes, 0);
    if (rc == (long)ret->bytes)
        return 0;
    PYC_SYS2(__NR_munmap, ret->at, ret->bytes);
    ret->at = NULL;
    return rc < 0 ? rc : -EINVAL;
}

/* Checks the blob; on refusal the client has been told. */
static struct pyc_plan *check_blob(int32_t client, const struct blob *blob, uint32_t slots) {
    struct pyc_refusal refusal = {0, 0};
    const struct pyc_record *r = (const void *)blob->at;
    if (pyc_record_check(blob->at, blob->bytes, &refusal) != 0) {
        reply_failed(client, PYC_STAGE_RECORD, -EINVAL, refusal.line, 0);
        return NULL;
    }
    struct pyc_plan *plan = (void *)(blob->at + r->record_bytes);
    if (pyc_plan_check(plan, blob->bytes - r->record_bytes, slots, &refusal) != 0) {
        reply_failed(client, PYC_STAGE_PLAN, -EINVAL, refusal.op_index, refusal.line);
        return NULL;
    }
    /* Without a state directory there is nowhere to keep FIFOs. */
    if ((r->flags & PYC_R_LOG) != 0 && (r->flags & PYC_R_EPHEMERAL) != 0 && r->state_dir == 0) {
        reply_failed(client, PYC_STAGE_STATE, -EINVAL, 0, 0);
        return NULL;
    }
    if (container_find(record_text(r, r->id)) >= 0) {
        reply_failed(client, PYC_STAGE_REQUEST, -EEXIST, 0, 0);
        return NULL;
    }
    return plan;
}

/* Writes one of the child's id map files; an empty text is "not given". */
static long write_map(int pid, const char *name, const char *text) {
    char path[64], *at = pyc_put_text(path, "/proc/");
    if (text[0] == '\0')
        return 0;
    at = pyc_put_decimal(at, (uint64_t)pid, 1);
    *pyc_put_text(pyc_put_text(at, "/"), name) = '\0';
    int fd = (int)open_at(AT_FDCWD, path, O_WRONLY, 0);
    if (fd < 0)
        return fd;
    /* One write: the kernel accepts a map only whole (user_namespaces(7)). */
    long rc = PYC_SYS3(__NR_write, fd, text, strlen(text));
    close_fd(&fd);
    return rc < 0 ? rc : 0;
}

static long write_maps(int pid, const struct pyc_plan *plan) {
    long rc = write_map(pid, "setgroups", plan_text(plan, plan->setgroups));
    if (rc >= 0)
        rc = write_map(pid, "uid_map", plan_text(plan, plan->uid_map));
    return rc < 0 ? rc : write_map(pid, "gid_map", plan_text(plan, plan->gid_map));
}

/* clone3 with the container's pid going straight into its slot: the kernel stores it before the
 * child runs (CLONE_PARENT_SETTID), so there is no moment in which a new worker would not know of
 * a process. No signal is blocked around it: there are no handlers that a child could run. */
static long clone_child(const struct pyc_plan *plan, const int *slots, int *pid_at, int *ret_pidfd) {
    struct clone_args args;
    memset(&args, 0, sizeof args);
    args.flags = plan->clone_flags | CLONE_PIDFD | CLONE_PARENT_SETTID | CLONE_CLEAR_SIGHAND;
    args.pidfd = (uint64_t)(uintptr_t)ret_pidfd;
    args.parent_tid = (uint64_t)(uintptr_t)pid_at;
    args.exit_signal = SIGCHLD;
    if (plan->cgroup_slot >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint32_t)slots[plan->cgroup_slot];
    }
    return PYC_SYS2(__NR_clone3, &args, sizeof args);
}

/* The same inside another container's pid namespace. Only children are affected by setns of a pid
 * namespace, and only until we go back; if that failed, every later container would land there. */
static long clone_joined(const struct pyc_plan *plan, const int *slots, int *pid_at,
                         int *ret_pidfd) {
    if (plan->pidns_slot < 0)
        return clone_child(plan, slots, pid_at, ret_pidfd);
    int home = (int)PYC_SYS4(__NR_openat, AT_FDCWD, "/proc/self/ns/pid", O_RDONLY | O_CLOEXEC, 0);
    if (home < 0)
        return home;
    long rc = PYC_SYS2(__NR_setns, slots[plan->pidns_slot], CLONE_NEWPID);
    if (rc >= 0)
        rc = clone_child(plan, slots, pid_at, ret_pidfd);
    if (rc != 0 && PYC_SYS2(__NR_setns, home, CLONE_NEWPID) < 0)
        leave(4); /* a new worker starts in the right place */
    if (rc != 0)
        close_fd(&home);
    return rc;
}

/* Fills the slot and opens what the record asks for, before there is a process. */
static long prepare(uint32_t index, const struct pyc_record *record) {
    struct container *c = &containers[index];
    struct slot *slot = slot_of(index);
    memcpy(&slot->record, record, record->record_bytes);
    struct pyc_record *r = &slot->record;
    slot->exit_flags = 0;
    slot->started_monotonic_usec = monotonic_usec();
    r->pid = 0;
    r->pid_start_ticks = 0;
    r->deadline_usec = 0;
    r->started_usec = realtime_usec();
    r->status = PYC_ST_SPAWNING;
    if (r->state_dir != 0) {
        c->dir_fd = (int)open_host(record_text(r, r->state_dir), O_PATH | O_DIRECTORY, 0);
        if (c->dir_fd < 0)
            return c->dir_fd;
    }
    /* `live` exists before the process does: if keeper and worker are both killed right after
     * clone3, it names the cgroup by which the unknown process can be killed. */
    long rc = live_write(index);
    return rc >= 0 && (r->flags & PYC_R_LOG) != 0 ? log_open(index) : rc;
}

static bool has_gate(const struct pyc_plan *plan, uint64_t gate) {
    const struct pyc_op *ops = (const void *)((const char *)plan + plan->op_offset);
    for (uint32_t i = 0; i < plan->op_count; i++)
        if (ops[i].code == PYC_OP_GATE && ops[i].num[0] == gate)
            return true;
    return false;
}

/* The clock of timeout_usec starts when nothing holds the child any more. */
static void start_deadline(uint32_t index) {
    struct pyc_record *r = record_of(index);
    if (r->timeout_usec == 0)
        return;
    r->deadline_usec = boottime_usec() + r->timeout_usec;
    containers[index].deadline_usec = r->deadline_usec;
    wake_at(r->deadline_usec);
}

/* After clone3 in the worker. */
static void child_born(uint32_t index, const struct pyc_plan *plan) {
    struct container *c = &containers[index];
    struct pyc_record *r = record_of(index);
    struct process_stat st;
    const bool silent = (r->flags & (PYC_R_QUIET | PYC_R_PARK | PYC_R_TERMINAL)) == PYC_R_QUIET;
    c->mine = true;
    /* EPHEMERAL is known only to the keeper's family, which never confuses two lives of a pid. */
    if ((r->flags & PYC_R_EPHEMERAL) == 0 && read_process_stat(r->pid, &st) >= 0)
        r->pid_start_ticks = st.start_ticks;
    if (!has_gate(plan, PYC_GATE_START))
        start_deadline(index);
    if (silent) /* nobody waits for exec: one wake-up less; a failure is read at the exit */
        r->status = PYC_ST_RUNNING;
    live_update(index);
    if (!silent)
        watch(c->status_fd, W_STATUS, index, c->generation, EPOLLIN);
    watch(c->pidfd, W_PIDFD, index, c->generation, EPOLLIN);
    if (!has_gate(plan, PYC_GATE_MAPPED))
        return;
    long rc = write_maps(r->pid, plan);
    if (rc < 0) {
        c->failed_stage = PYC_STAGE_MAP;
        c->failure = (struct pyc_report){PYC_REPORT_FAILED, 0, 0, (int32_t)-rc};
        container_kill(index, 0);
    } else {
        send_message(c->status_fd, "m", 1, -1);
    }
}

static void spawn_checked(int32_t client, const struct blob *blob, struct pyc_plan *plan,
                          const int *slots, uint32_t slot_count) {
    const struct pyc_record *record = (const void *)blob->at;
    int32_t entry = container_new();
    if (entry < 0) {
        reply_failed(client, PYC_STAGE_REQUEST, -ENOSPC, 0, 0);
        return;
    }
    const uint32_t index = (uint32_t)entry;
    struct container *c = &containers[index];
    int pair[2], table[PYC_MAX_SLOTS];
    client_follow(client, index);
    c->speaker = client;
    if ((record->flags & PYC_R_LIFELINE) != 0)
        c->owner = client;
    long rc = prepare(index, record);
    if (rc < 0) {
        spawn_failed(index, PYC_STAGE_STATE, rc, 0, 0);
        return;
    }
    rc = PYC_SYS4(__NR_socketpair, AF_UNIX_, SOCK_SEQPACKET_ | SOCK_CLOEXEC_, 0, pair);
    if (rc < 0) {
        spawn_failed(index, PYC_STAGE_CLONE, rc, 0, 0);
        return;
    }
    for (uint32_t i = 0; i < PYC_MAX_SLOTS; i++)
        table[i] = i < slot_count ? slots[i] : -1;
    rc = clone_joined(plan, slots, &record_of(index)->pid, &c->pidfd);
    if (rc == 0)
        pyc_child(plan, table, pair[1]);
    close_fd(&pair[1]);
    c->status_fd = pair[0];
    if (rc < 0) {
        c->pidfd = -1;
        spawn_failed(index, PYC_STAGE_CLONE, rc, 0, 0);
        return;
    }
    c->phase = C_SETUP;
    child_born(index, plan);
}

void spawn(int32_t client, const int *fds, uint32_t fd_count) {
    struct blob blob = {NULL, 0};
    long rc = fd_count == 0 ? -EINVAL : load_blob(fds[0], &blob);
    if (rc < 0) {
        reply_failed(client, PYC_STAGE_REQUEST, rc, 0, 0);
        return;
    }
    struct pyc_plan *plan = check_blob(client, &blob, fd_count - 1);
    if (plan != NULL)
        spawn_checked(client, &blob, plan, fds + 1, fd_count - 1);
    PYC_SYS2(__NR_munmap, blob.at, blob.bytes);
}

static void say(uint32_t index, enum pyc_reply_kind kind) {
    struct container *c = &containers[index];
    struct pyc_reply message = {.abi = PYC_ABI, .kind = kind, .pid = record_of(index)->pid};
    if (c->speaker >= 0)
        reply(c->speaker, &message, c->pidfd);
    c->spoken = true;
}

/* End of file without a failure: the child has executed (its end was CLOEXEC), or was killed. */
static void exec_done(uint32_t index) {
    struct container *c = &containers[index];
    struct pyc_record *r = record_of(index);
    if (c->phase == C_PARKED)
        keep_fd(index, STORED_STATUS, -1);
    unwatch_close(&c->status_fd);
    if (c->failed_stage != 0 || c->phase == C_PARKED) /* parked and gone: the exit says the rest */
        return;
    c->phase = C_RUNNING;
    if (r->status != PYC_ST_RUNNING) {
        r->status = PYC_ST_RUNNING;
        live_update(index);
    }
    close_fd(&c->live_fd);
    if ((r->flags & PYC_R_QUIET) == 0)
        say(index, PYC_REP_SPAWNED);
}

static void parked(uint32_t index) {
    struct container *c = &containers[index];
    c->phase = C_PARKED;
    record_of(index)->status = PYC_ST_PARKED;
    live_update(index);
    keep_fd(index, STORED_STATUS, c->status_fd); /* else the child would leave with this worker */
    say(index, PYC_REP_PARKED);
}

void start_parked(int32_t client, uint32_t index) {
    struct container *c = &containers[index];
    if (c->phase != C_PARKED) {
        reply_failed(client, PYC_STAGE_REQUEST, -EBUSY, 0, 0);
        return;
    }
    reply_ok(client);
    c->speaker = client;
    client_follow(client, index);
    start_deadline(index);
    c->phase = C_SETUP;
    keep_fd(index, STORED_STATUS, -1);
    send_message(c->status_fd, "s", 1, -1);
}

/* Reads all that the child has reported. Reports have a fixed size and come from before exec, when
 * the process still ran our code. */
void status_ready(uint32_t index) {
    struct container *c = &containers[index];
    while (c->status_fd >= 0) {
        struct pyc_report report;
        int fd = -1;
        uint32_t fds = 1;
        long n = receive_message(c->status_fd, &report, sizeof report, &fd, &fds, false);
        if (n == -EAGAIN || n == -EINTR)
            return;
        if (n <= 0) {
            exec_done(index);
        } else if (n == sizeof report && report.kind == PYC_REPORT_FAILED &&
                   c->failed_stage == 0) {
            c->failed_stage = PYC_STAGE_OP;
            c->failure = report;
        } else if (n == sizeof report && report.kind == PYC_REPORT_PARKED) {
            parked(index);
        } else if (n == sizeof report && report.kind == PYC_REPORT_MASTER && fd >= 0 &&
                   c->master_fd < 0) {
            c->master_fd = fd;
            fd = -1;
            keep_fd(index, STORED_MASTER, c->master_fd);
            tty_opened(index);
        }
        close_fd(&fd);
    }
}
