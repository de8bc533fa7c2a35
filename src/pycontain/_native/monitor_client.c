/* monitor_client.c: connections and what is asked on them. Never trusts a length, never blocks:
 * whoever does not read loses its connection. */
#include "monitor.h"

enum { SOL_SOCKET_ = 1, SO_PEERCRED_ = 17, SOCK_CLOEXEC_ = 0x80000, SOCK_NONBLOCK_ = 0x800,
       TIOCSWINSZ_ = 0x5414 };

struct client {
    uint32_t generation;
    int32_t fd;       /* + 1; 0 = free entry */
    int32_t follows;  /* container + 1 whose end it is told; 0 = none */
};
struct ucred_ { int32_t pid; uint32_t uid, gid; };

static struct client clients[MAX_CLIENTS];
static uint32_t clients_high;
uint32_t clients_count;
bool asked_to_leave;

static void client_drop(int32_t client) {
    struct client *it = &clients[client];
    int fd = it->fd - 1;
    if (fd < 0)
        return;
    unwatch_close(&fd);
    it->fd = 0;
    it->follows = 0;
    clients_count--;
    while (clients_high > 0 && clients[clients_high - 1].fd == 0)
        clients_high--;
    for (uint32_t i = 0; i < containers_high; i++) {
        struct container *c = &containers[i];
        if (c->phase == C_FREE)
            continue;
        if (c->speaker == client)
            c->speaker = -1;
        if (c->owner == client) {
            c->owner = -1;
            container_kill(i, PYC_X_OWNER_GONE);
        }
    }
}

static void client_send(int32_t client, const void *message, size_t bytes, int fd) {
    if (clients[client].fd == 0)
        return;
    if (send_message(clients[client].fd - 1, message, bytes, fd) < 0)
        client_drop(client); /* gone, or it does not read: it would miss an exit */
}

void reply(int32_t client, const struct pyc_reply *message, int fd) {
    client_send(client, message, sizeof *message, fd);
}

void reply_ok(int32_t client) {
    reply(client, &(struct pyc_reply){.abi = PYC_ABI, .kind = PYC_REP_OK}, -1);
}

void reply_failed(int32_t client, enum pyc_stage stage, long err, uint32_t op, uint32_t opcode) {
    struct pyc_reply message = {.abi = PYC_ABI, .kind = PYC_REP_FAILED, .stage = stage,
                                .op_index = op, .opcode = opcode,
                                .err = (int32_t)(err < 0 ? -err : err)};
    reply(client, &message, -1);
}

void client_follow(int32_t client, uint32_t index) {
    if (clients[client].fd != 0)
        clients[client].follows = (int32_t)index + 1;
}

/* Nobody waits for this container any more. */
void unfollow(uint32_t index) {
    for (uint32_t i = 0; i < clients_high; i++)
        if (clients[i].follows == (int32_t)index + 1)
            clients[i].follows = 0;
}

/* Sends to everybody who waits for the end of the container. */
void tell_followers(uint32_t index, const void *message, size_t bytes) {
    for (int32_t i = 0; i < (int32_t)clients_high; i++) {
        if (clients[i].follows == (int32_t)index + 1) {
            clients[i].follows = 0;
            client_send(i, message, bytes, -1);
        }
    }
}

static void wait_request(int32_t client, uint32_t index) {
    struct container *c = &containers[index];
    client_follow(client, index);
    /* The owner of a LIFELINE container whose connection a dead worker took along. */
    if (c->grace_usec != NEVER) {
        c->grace_usec = NEVER;
        c->owner = client;
    }
}

static void resize_request(int32_t client, uint32_t index, uint64_t size) {
    uint16_t winsize[4] = {(uint16_t)(size >> 32), (uint16_t)size, 0, 0};
    long rc = containers[index].master_fd < 0
                  ? -ENOTTY
                  : PYC_SYS3(__NR_ioctl, containers[index].master_fd, TIOCSWINSZ_, winsize);
    if (rc < 0)
        reply_failed(client, PYC_STAGE_REQUEST, rc, 0, 0);
    else
        reply_ok(client);
}

static void deadline_request(int32_t client, uint32_t index, uint64_t usec) {
    struct container *c = &containers[index];
    struct pyc_record *r = record_of(index);
    uint64_t now = boottime_usec();
    r->deadline_usec = usec == 0 ? 0 : usec > NEVER / 2 ? NEVER / 2 : now + usec;
    c->deadline_usec = r->deadline_usec == 0 ? NEVER : r->deadline_usec;
    wake_at(c->deadline_usec);
    live_update(index);
    reply_ok(client);
}

/* Requests about a living container. */
static void container_request(int32_t client, const struct pyc_request *request, int *fds,
                              uint32_t fd_count) {
    int32_t found = container_find(request->id);
    uint32_t index = (uint32_t)found;
    long rc;
    if (found < 0) {
        reply_failed(client, PYC_STAGE_REQUEST, -ENOENT, 0, 0);
        return;
    }
    switch (request->kind) {
    case PYC_REQ_START: start_parked(client, index); break;
    case PYC_REQ_WAIT: wait_request(client, index); break;
    case PYC_REQ_RESIZE: resize_request(client, index, request->num[0]); break;
    case PYC_REQ_DEADLINE: deadline_request(client, index, request->num[0]); break;
    case PYC_REQ_ATTACH:
        rc = fd_count == 1 ? attach(index, fds[0]) : -EINVAL;
        if (rc < 0) {
            reply_failed(client, PYC_STAGE_REQUEST, rc, 0, 0);
        } else {
            fds[0] = -1; /* its own now */
            reply_ok(client);
        }
        break;
    default: reply_failed(client, PYC_STAGE_REQUEST, -EINVAL, 0, 0);
    }
}

static uint32_t count_alive(void) {
    uint32_t alive = 0;
    for (uint32_t i = 0; i < containers_high; i++)
        alive += containers[i].phase != C_FREE && containers[i].phase != C_LEFTOVER;
    return alive;
}

static void info_request(int32_t client) {
    struct pyc_reply info = {.abi = PYC_ABI, .kind = PYC_REP_INFO,
                             .pid = (int32_t)PYC_SYS0(__NR_getpid), /* its parent is the keeper */
                             .num = {count_alive(), clients_count}};
    reply(client, &info, -1);
}

static void shutdown_request(int32_t client) {
    if (count_alive() > 0) {
        reply_failed(client, PYC_STAGE_REQUEST, -EBUSY, 0, 0);
        return;
    }
    /* Busy cgroups are waited for, their time is bounded; clients that do not read are not. */
    for (uint32_t i = 0; i < containers_high; i++) {
        if (containers[i].phase == C_LEFTOVER) {
            tty_close(i);
            retry_leftover(i);
        }
    }
    reply_ok(client);
    asked_to_leave = true;
}

static void request(int32_t client, const struct pyc_request *request, int *fds,
                    uint32_t fd_count) {
    if (request->abi != PYC_ABI || request->id[PYC_ID_BYTES - 1] != '\0') {
        reply_failed(client, PYC_STAGE_REQUEST, -EPROTO, 0, 0);
        return;
    }
    switch (request->kind) {
    case PYC_REQ_SPAWN:
        if (clients[client].follows != 0) /* one container per connection */
            reply_failed(client, PYC_STAGE_REQUEST, -EBUSY, 0, 0);
        else
            spawn(client, fds, fd_count);
        break;
    case PYC_REQ_INFO: info_request(client); break;
    case PYC_REQ_SHUTDOWN: shutdown_request(client); break;
    default: container_request(client, request, fds, fd_count);
    }
}

static void client_ready(int32_t client) {
    struct pyc_request message;
    int fds[MAX_MESSAGE_FDS];
    uint32_t fd_count = MAX_MESSAGE_FDS;
    long n = receive_message(clients[client].fd - 1, &message, sizeof message, fds, &fd_count,
                             false);
    if (n == -EAGAIN || n == -EINTR)
        return;
    if (n == 0 || (n < 0 && n != -EMSGSIZE)) {
        client_drop(client);
        return;
    }
    if (n == sizeof message)
        request(client, &message, fds, fd_count);
    else
        reply_failed(client, PYC_STAGE_REQUEST, -EBADMSG, 0, 0);
    for (uint32_t i = 0; i < fd_count; i++)
        close_fd(&fds[i]);
}

/* Takes one connection. The socket is 0600 in a 0700 directory; the uid is checked all the same. */
bool accept_client(void) {
    struct ucred_ peer = {0, ~0U, 0};
    uint32_t bytes = sizeof peer, i = 0;
    int fd = (int)PYC_SYS4(__NR_accept4, world.listen_fd, 0, 0, SOCK_CLOEXEC_ | SOCK_NONBLOCK_);
    if (fd < 0)
        return false;
    while (i < clients_high && clients[i].fd != 0)
        i++;
    PYC_SYS5(__NR_getsockopt, fd, SOL_SOCKET_, SO_PEERCRED_, &peer, &bytes);
    if (i == MAX_CLIENTS || (peer.uid != 0 && peer.uid != world.euid) ||
        watch(fd, W_CLIENT, i, clients[i].generation + 1, EPOLLIN) < 0) {
        close_fd(&fd);
        return true;
    }
    if (i == clients_high)
        clients_high++;
    clients[i].generation++;
    clients[i].fd = fd + 1;
    clients[i].follows = 0;
    clients_count++;
    return true;
}

void client_event(uint32_t client, uint32_t generation) {
    if (clients[client].fd != 0 && (clients[client].generation & 0xffffff) == generation)
        client_ready((int32_t)client);
}
