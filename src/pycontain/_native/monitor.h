/* monitor.h: what the files of the monitor share.
 *
 *   keeper.c          first process: daemon, lock, socket, empty mount namespace; restarts the worker
 *   monitor.c         worker: the event loop, the containers' entries, timers
 *   monitor_client.c  connections and their requests
 *   monitor_spawn.c   SPAWN, clone3, what the child reports until exec
 *   monitor_exit.c    the end: exit ops, `exit`, reaping, removal of the cgroup
 *   monitor_state.c   the `live` files, adoption after a crash
 *   monitor_log.c     FIFO -> spool -> log, each byte exactly once
 *   monitor_cri.c     the log's line format
 *   monitor_tty.c     terminals and who is attached to them
 *   monitor_sys.c     system calls with kernel structs
 *
 * The worker is the parent of the containers. What must survive it lies in two places that the
 * keeper owns: the slots (shared memory: one record per container) and the fd store (descriptors
 * that cannot be opened again: FIFOs with bytes in them, terminal masters, parked children).
 */
#ifndef PYCONTAIN_MONITOR_H
#define PYCONTAIN_MONITOR_H

#include "freestanding.h"
#include "plan.h"
#include "sys.h"

#include <asm/siginfo.h>
#include <asm/stat.h>
#include <linux/errno.h>
#include <linux/eventpoll.h>
#include <linux/fcntl.h>
#include <linux/resource.h>
#include <stdbool.h>

enum {
    MAX_CONTAINERS = 4096,
    MAX_CLIENTS = 8192,
    MAX_ATTACHED = 512,
    SLOT_BYTES = PYC_MAX_RECORD_BYTES + 4096, /* address space; only used pages are memory */
    IO_BYTES = 65536,
    TTY_CHUNK_BYTES = 16384
};

#define SECOND_USEC 1000000ULL
#define NEVER UINT64_MAX

/* One container in memory that keeper and workers share; it outlives a worker. */
struct slot {
    uint32_t exit_flags;             /* enum pyc_exit_flags, collected until the end */
    uint32_t pad;
    uint64_t started_monotonic_usec; /* 0 = adopted from a file */
    struct pyc_record record;        /* and its exit ops and arena; status 0 = free slot */
};

/* The first page of the shared memory; the slots follow. */
struct shared { uint32_t slots_high; /* slots from here on were never used */ };

enum stored { STORED_STATUS, STORED_MASTER, STORED_OUT, STORED_ERR, STORED_COUNT };

/* Set up by the keeper before the first worker starts, then constant. */
struct world {
    int host_root_fd;  /* O_PATH of the host's "/": every host path is resolved from here */
    int state_fd;      /* the state root */
    int listen_fd;
    int ready_fd;      /* -1 once the client has been told */
    int exits_fd[2];   /* keeper [0] -> worker [1]: how re-parented processes ended */
    int store_fd[2];   /* worker [1] -> keeper [0]: fds to keep or forget */
    int keeper_pid;
    uint32_t euid;
    bool restarted;    /* a worker died before this one */
    uint64_t idle_usec;
    struct shared *shared;
    int stored[MAX_CONTAINERS][STORED_COUNT]; /* fd + 1; the keeper's, inherited by fork */
};
extern struct world world;

enum phase {
    C_FREE,
    C_SETUP,    /* cloned, not known to have executed */
    C_PARKED,
    C_RUNNING,
    C_ORPHANED, /* it has ended; the keeper's word on how is under way */
    C_LEFTOVER  /* EXIT is sent; its cgroup is still busy, or its last terminal output undelivered */
};

struct stream { int fifo_fd, spool_fd; };

/* One container as this worker sees it. */
struct container {
    uint32_t generation; /* makes events of an earlier user of this entry recognisable */
    uint32_t id_hash;
    enum phase phase;
    bool mine;           /* our child; otherwise adopted */
    bool keepers;        /* adopted, and the keeper is its parent */
    bool spoken;         /* SPAWNED or PARKED has been replied */
    bool log_stuck;      /* the log can't be written: its disk is full */
    bool tty_deaf;       /* we do not read the terminal until the attached have what it said */
    int pidfd, status_fd, dir_fd, live_fd, log_fd, master_fd;
    struct stream out, err;
    int32_t owner;       /* client whose end is the container's (LIFELINE), -1 */
    int32_t speaker;     /* client that waits for SPAWNED or FAILED, -1 */
    uint32_t busy_tries;
    uint64_t deadline_usec, busy_usec, log_retry_usec, grace_usec, orphan_usec; /* NEVER */
    uint8_t *tty_out;    /* TTY_CHUNK_BYTES on their way to the attached */
    uint32_t tty_out_bytes;
    uint32_t failed_stage;     /* enum pyc_stage, 0 = no failure */
    struct pyc_report failure; /* valid if failed_stage */
};

/* How a process ended. */
struct ending {
    int32_t code, status;
    bool known;
    struct rusage usage;
};

/* `executed`: it has run a program of its own, and not only our code between clone and exec. */
struct keeper_exit { int32_t pid; bool executed; struct ending ending; };

enum watch_kind {
    W_LISTEN = 1, W_EXITS, W_CLIENT, W_STATUS, W_PIDFD, W_OUT, W_ERR, W_MASTER, W_ATTACHED
};

static inline struct slot *slot_of(uint32_t index) {
    return (struct slot *)((uint8_t *)world.shared + 4096 +
                                   (size_t)index * SLOT_BYTES);
}
static inline struct pyc_record *record_of(uint32_t index) { return &slot_of(index)->record; }
static inline const char *record_text(const struct pyc_record *r, uint32_t offset) {
    return (const char *)r + r->arena_offset + offset;
}

/* keeper.c */
int worker_main(void); /* in monitor.c; what it returns is its exit code */

/* monitor.c */
extern struct container containers[MAX_CONTAINERS];
extern uint32_t containers_high; /* entries from here on are free */
extern uint32_t containers_count;
uint64_t realtime_usec(void);
uint64_t monotonic_usec(void);
uint64_t boottime_usec(void);
int32_t container_find(const char *id);
int32_t container_new(void);
void container_at(uint32_t index);
void container_free(uint32_t index);
void container_kill(uint32_t index, uint32_t exit_flag);
void wake_at(uint64_t usec);
long watch(int fd, enum watch_kind kind, uint32_t index, uint32_t generation, uint32_t events);
void rewatch(int fd, enum watch_kind kind, uint32_t index, uint32_t generation, uint32_t events);
void unwatch_close(int *fd);
void exits_ready(void);
void keep_fd(uint32_t index, enum stored which, int fd); /* -1 = forget */

/* monitor_client.c */
extern uint32_t clients_count;
extern bool asked_to_leave; /* by SHUTDOWN */
bool accept_client(void);
void client_event(uint32_t client, uint32_t generation);
void unfollow(uint32_t index);
void reply(int32_t client, const struct pyc_reply *message, int fd);
void reply_ok(int32_t client);
void reply_failed(int32_t client, enum pyc_stage stage, long err, uint32_t op, uint32_t opcode);
void client_follow(int32_t client, uint32_t index);
void tell_followers(uint32_t index, const void *message, size_t bytes);

/* monitor_spawn.c */
void spawn(int32_t client, const int *fds, uint32_t fd_count);
void start_parked(int32_t client, uint32_t index);
void status_ready(uint32_t index);

/* monitor_exit.c */
void pidfd_ready(uint32_t index);
void keeper_told(const struct keeper_exit *told);
void container_ended(uint32_t index, const struct ending *e);
void spawn_failed(uint32_t index, enum pyc_stage stage, long err, uint32_t op, uint32_t opcode);
void never_ran(uint32_t index);
void retry_leftover(uint32_t index);
bool ending_of_stranger(int pidfd, const struct pyc_record *record, struct ending *ret);

/* monitor_state.c */
enum { PF_FORKNOEXEC_ = 0x40 }; /* in its flags: cloned and not yet executed */
struct process_stat { char state; int32_t parent; uint64_t flags, start_ticks, exit_code; };
long read_process_stat(int pid, struct process_stat *ret);
long live_write(uint32_t index);
void live_update(uint32_t index);
void live_remove(uint32_t index);
void adopt_from_files(void);
void adopt_from_slots(void);

/* monitor_log.c */
long log_open(uint32_t index);
void log_pump(uint32_t index, struct stream *stream);
void log_drain(uint32_t index);
void log_retry(uint32_t index);
void log_terminal(uint32_t index, const uint8_t *bytes, uint32_t count);

/* monitor_cri.c: pure */
enum { CRI_PREFIX_BYTES = 48, CRI_SEGMENT_BYTES = 16384 };
uint32_t cri_prefix(char *at, uint64_t sec, uint32_t nsec, const char *stream);
uint32_t cri_lines(const uint8_t *raw, uint32_t raw_bytes, uint32_t *ret_used, const char *prefix,
                   uint32_t prefix_bytes, uint8_t *out, uint32_t out_bytes);

/* monitor_tty.c */
void tty_opened(uint32_t index);
void tty_ready(uint32_t index, uint32_t events);
void tty_drain(uint32_t index);
bool tty_quiet(uint32_t index);
void tty_close(uint32_t index);
void attached_ready(uint32_t attached, uint32_t events);
uint32_t attached_generation(uint32_t attached);
long attach(uint32_t index, int fd);

/* monitor_sys.c */
enum { MAX_MESSAGE_FDS = PYC_MAX_SLOTS + 1 };
long send_message(int fd, const void *data, size_t bytes, int passed_fd);
long receive_message(int fd, void *data, size_t bytes, int *ret_fds, uint32_t *inout_fds,
                     bool peek);
long open_host(const char *path, uint64_t flags, uint64_t mode);
long open_at(int dir_fd, const char *name, int flags, int mode);
long write_all(int fd, const void *data, size_t bytes);
long write_host_file(const char *path, const char *text);
long wait_pidfd(int id_type, int id, int options, struct ending *ret);
long monitor_pidfd_open(int pid);
void close_fd(int *fd);
void *map_memory(size_t bytes, int extra_flags);
_Noreturn void leave(int code);

#endif
