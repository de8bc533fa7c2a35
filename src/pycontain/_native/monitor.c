/* monitor.c: the worker: containers, timers and one epoll loop; everything it waits for is a descriptor or one timeout
 * that is armed only while something needs it, so an idle monitor uses no CPU. */
#include "monitor.h"

#include <linux/time.h>
#include <linux/time_types.h>

enum { SIGKILL_ = 9, EVENTS_AT_ONCE = 64 };

struct container containers[MAX_CONTAINERS];
uint32_t containers_high;
uint32_t containers_count;
static int epoll_fd = -1;
static uint64_t next_wake_usec = NEVER; /* boottime; never later than the earliest timer */
static uint64_t idle_since_usec = NEVER;

static uint64_t clock_usec(int clock) {
    struct __kernel_timespec ts = {0, 0};
    PYC_SYS2(__NR_clock_gettime, clock, &ts);
    return (uint64_t)ts.tv_sec * SECOND_USEC + (uint64_t)ts.tv_nsec / 1000;
}
uint64_t realtime_usec(void) { return clock_usec(CLOCK_REALTIME); }
uint64_t monotonic_usec(void) { return clock_usec(CLOCK_MONOTONIC); }
uint64_t boottime_usec(void) { return clock_usec(CLOCK_BOOTTIME); }

void wake_at(uint64_t usec) {
    if (usec < next_wake_usec)
        next_wake_usec = usec;
}

/* Events carry kind, generation and index: one that was fetched together with the event that freed
 * its entry is recognised as stale. */
static struct epoll_event event_of(enum watch_kind kind, uint32_t index, uint32_t generation,
                                   uint32_t events) {
    return (struct epoll_event){
        events, (uint64_t)kind << 56 | (uint64_t)(generation & 0xffffff) << 32 | index};
}

long watch(int fd, enum watch_kind kind, uint32_t index, uint32_t generation, uint32_t events) {
    struct epoll_event event = event_of(kind, index, generation, events);
    return PYC_SYS4(__NR_epoll_ctl, epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

void rewatch(int fd, enum watch_kind kind, uint32_t index, uint32_t generation, uint32_t events) {
    struct epoll_event event = event_of(kind, index, generation, events);
    PYC_SYS4(__NR_epoll_ctl, epoll_fd, EPOLL_CTL_MOD, fd, &event);
}

/* Closing is not enough: the keeper or a child that has just been cloned may hold the same open
 * file, and then epoll would go on reporting it. */
void unwatch_close(int *fd) {
    if (*fd >= 0)
        PYC_SYS4(__NR_epoll_ctl, epoll_fd, EPOLL_CTL_DEL, *fd, 0);
    close_fd(fd);
}

/* ---- containers ---- */

static uint32_t hash_text(const char *text) {
    uint32_t hash = 2166136261U; /* FNV-1a */
    for (; *text != '\0'; text++)
        hash = (hash ^ (uint8_t)*text) * 16777619U;
    return hash;
}

/* The living container called `id`, or -1. One whose EXIT has been sent is not living. */
int32_t container_find(const char *id) {
    uint32_t hash = hash_text(id);
    for (uint32_t i = 0; i < containers_high; i++) {
        const struct container *c = &containers[i];
        if (c->phase == C_FREE || c->phase == C_LEFTOVER)
            continue;
        const struct pyc_record *r = record_of(i);
        const char *other = record_text(r, r->id);
        if (c->id_hash == 0)
            containers[i].id_hash = hash_text(other);
        if (c->id_hash == hash && strlen(other) == strlen(id) && memcmp(other, id, strlen(id)) == 0)
            return (int32_t)i;
    }
    return -1;
}

/* Makes entry `index` a fresh one with nothing open. */
void container_at(uint32_t index) {
    struct container *c = &containers[index];
    uint32_t generation = c->generation + 1;
    *c = (struct container){.generation = generation, .phase = C_SETUP, .pidfd = -1,
                            .status_fd = -1, .dir_fd = -1, .live_fd = -1, .log_fd = -1,
                            .master_fd = -1, .out = {-1, -1}, .err = {-1, -1}, .owner = -1,
                            .speaker = -1, .deadline_usec = NEVER, .busy_usec = NEVER,
                            .log_retry_usec = NEVER, .grace_usec = NEVER, .orphan_usec = NEVER};
    containers_count++;
    if (index >= containers_high)
        containers_high = index + 1;
    if (index >= world.shared->slots_high)
        world.shared->slots_high = index + 1;
}

/* The lowest free entry, made fresh; its slot is free too. -1: all are taken. */
int32_t container_new(void) {
    uint32_t i = 0;
    while (i < containers_high && containers[i].phase != C_FREE)
        i++;
    if (i == MAX_CONTAINERS)
        return -1;
    container_at(i);
    return (int32_t)i;
}

/* Closes all and frees entry and slot. Whoever followed it has been told. */
void container_free(uint32_t index) {
    enum { WARM_SLOTS = 16, MADV_REMOVE_ = 9 };
    struct container *c = &containers[index];
    struct stream *streams[2] = {&c->out, &c->err};
    for (unsigned i = 0; i < 2; i++) {
        if (streams[i]->fifo_fd >= 0)
            keep_fd(index, i == 0 ? STORED_OUT : STORED_ERR, -1);
        unwatch_close(&streams[i]->fifo_fd);
        close_fd(&streams[i]->spool_fd);
    }
    tty_close(index);
    unwatch_close(&c->status_fd);
    unwatch_close(&c->pidfd);
    close_fd(&c->dir_fd);
    close_fd(&c->live_fd);
    close_fd(&c->log_fd);
    unfollow(index);
    c->phase = C_FREE;
    record_of(index)->status = 0;
    if (index >= WARM_SLOTS) /* give the pages back, here and in the keeper's mapping */
        PYC_SYS3(__NR_madvise, slot_of(index), SLOT_BYTES, MADV_REMOVE_);
    containers_count--;
    while (containers_high > 0 && containers[containers_high - 1].phase == C_FREE)
        containers_high--;
}

/* Kills everything in it. The pid too: cgroup.kill may be missing (cgroup v1, Linux < 5.14), and
 * the first process of a pid namespace takes all others with it. */
void container_kill(uint32_t index, uint32_t exit_flag) {
    const struct pyc_record *r = record_of(index);
    slot_of(index)->exit_flags |= exit_flag;
    if (r->kill_path != 0)
        write_host_file(record_text(r, r->kill_path), "1");
    if (containers[index].pidfd >= 0)
        PYC_SYS4(__NR_pidfd_send_signal, containers[index].pidfd, SIGKILL_, 0, 0);
}

static void run_timers(uint64_t now) {
    next_wake_usec = NEVER;
    for (uint32_t i = 0; i < containers_high; i++) {
        struct container *c = &containers[i];
        if (c->phase != C_FREE && c->deadline_usec <= now) {
            c->deadline_usec = NEVER;
            container_kill(i, PYC_X_TIMED_OUT);
        }
        if (c->phase != C_FREE && c->grace_usec <= now) {
            c->grace_usec = NEVER;
            container_kill(i, PYC_X_OWNER_GONE);
        }
        if (c->phase != C_FREE && c->log_retry_usec <= now) {
            c->log_retry_usec = NEVER;
            log_retry(i);
        }
        if (c->phase == C_ORPHANED && c->orphan_usec <= now) {
            c->orphan_usec = NEVER;
            pidfd_ready(i);
        }
        if (c->phase == C_LEFTOVER && c->busy_usec <= now)
            retry_leftover(i);
        if (c->phase == C_FREE)
            continue;
        wake_at(c->deadline_usec);
        wake_at(c->grace_usec);
        wake_at(c->log_retry_usec);
        wake_at(c->orphan_usec);
        wake_at(c->busy_usec);
    }
}

/* ---- the loop ---- */

void exits_ready(void) {
    struct keeper_exit told;
    uint32_t no_fds = 0;
    long n;
    /* Taken out of the queue only after it has been acted on: a worker that dies in between leaves
     * it to the next one, for whom the second time does nothing. */
    while ((n = receive_message(world.exits_fd[1], &told, sizeof told, NULL, &no_fds, true)) > 0) {
        if (n == sizeof told)
            keeper_told(&told);
        receive_message(world.exits_fd[1], &told, sizeof told, NULL, &no_fds, false);
    }
    if (n == 0) { /* the keeper was killed: go on without */
        unwatch_close(&world.exits_fd[1]);
    }
}

static void dispatch(const struct epoll_event *event) {
    const enum watch_kind kind = (enum watch_kind)(event->data >> 56);
    const uint32_t index = (uint32_t)event->data;
    const uint32_t generation = (uint32_t)(event->data >> 32) & 0xffffff;
    switch (kind) {
    case W_LISTEN: accept_client(); return;
    case W_EXITS: exits_ready(); return;
    case W_CLIENT:
        client_event(index, generation);
        return;
    case W_ATTACHED:
        if ((attached_generation(index) & 0xffffff) == generation)
            attached_ready(index, event->events);
        return;
    case W_STATUS: case W_PIDFD: case W_OUT: case W_ERR: case W_MASTER: break;
    }
    struct container *c = &containers[index];
    if (c->phase == C_FREE || (c->generation & 0xffffff) != generation)
        return;
    if (kind == W_STATUS)
        status_ready(index);
    else if (kind == W_PIDFD)
        pidfd_ready(index);
    else if (kind == W_MASTER)
        tty_ready(index, event->events);
    else
        log_pump(index, kind == W_OUT ? &c->out : &c->err);
}

/* True when nobody needs us. The socket's name goes first, so that whoever comes now starts
 * another monitor; whoever came before that is still served. */
static bool may_leave(uint64_t now) {
    if (containers_count > 0 || (clients_count > 0 && !asked_to_leave)) {
        idle_since_usec = NEVER;
        return false;
    }
    if (idle_since_usec == NEVER)
        idle_since_usec = now;
    if (!asked_to_leave && now - idle_since_usec < world.idle_usec) {
        wake_at(idle_since_usec + world.idle_usec);
        return false;
    }
    PYC_SYS5(__NR_renameat2, world.state_fd, "monitor.sock", world.state_fd, ".monitor.sock", 0);
    bool came = false;
    while (accept_client())
        came = true;
    if (!came || asked_to_leave) {
        PYC_SYS3(__NR_unlinkat, world.state_fd, ".monitor.sock", 0);
        return true;
    }
    PYC_SYS5(__NR_renameat2, world.state_fd, ".monitor.sock", world.state_fd, "monitor.sock", 0);
    return false;
}

static int timeout_msec(uint64_t now) {
    if (next_wake_usec == NEVER)
        return -1;
    if (next_wake_usec <= now)
        return 0;
    uint64_t msec = (next_wake_usec - now + 999) / 1000;
    return msec > 86400000 ? 86400000 : (int)msec;
}

int worker_main(void) {
    struct epoll_event events[EVENTS_AT_ONCE];
    epoll_fd = (int)PYC_SYS1(__NR_epoll_create1, O_CLOEXEC);
    if (epoll_fd < 0 || watch(world.listen_fd, W_LISTEN, 0, 0, EPOLLIN) < 0)
        return 3;
    close_fd(&world.store_fd[0]); /* the ends that are the keeper's, so that we see it die */
    close_fd(&world.exits_fd[0]);
    if (world.restarted)
        adopt_from_slots();
    else
        adopt_from_files();
    watch(world.exits_fd[1], W_EXITS, 0, 0, EPOLLIN);
    if (world.ready_fd >= 0)
        PYC_SYS3(__NR_write, world.ready_fd, "r", 1);
    close_fd(&world.ready_fd);
    for (;;) {
        uint64_t now = boottime_usec();
        if (next_wake_usec <= now)
            run_timers(now);
        if (may_leave(now))
            return 0;
        long n = PYC_SYS6(__NR_epoll_pwait, epoll_fd, events, EVENTS_AT_ONCE, timeout_msec(now), 0,
                          8);
        for (long i = 0; i < n; i++)
            dispatch(&events[i]);
    }
}
