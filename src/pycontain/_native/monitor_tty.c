/* monitor_tty.c: terminals, and who is attached to them.
 *
 * The worker holds the master (the keeper keeps a copy, so that a worker's death hangs up nobody)
 * and relays: what the terminal says goes to the log and to every attached socket, what they send
 * goes to the terminal. Closing a socket detaches, nothing more.
 *
 * While an attached program does not read, we do not read the terminal, as Docker has it: output
 * waits rather than being lost. With nobody attached it is read, logged and dropped, or a detached
 * container would stop at a full terminal. */
#include "monitor.h"

#include <linux/mman.h>

enum { OUT_ROOM = 8 * TTY_CHUNK_BYTES, IN_ROOM = TTY_CHUNK_BYTES, NONBLOCK_ = 0x800,
       F_GETFL_ = 3, F_SETFL_ = 4 };

struct attached {
    uint32_t generation;
    int32_t fd;         /* + 1; 0 = free entry */
    uint32_t container;
    uint32_t sent;      /* of the container's tty_out */
    uint8_t *input;     /* IN_ROOM bytes that the terminal has not taken yet; NULL = none ever */
    uint32_t input_bytes, input_sent;
};

static struct attached table[MAX_ATTACHED];
static uint32_t table_high;

static void set_nonblocking(int fd) {
    long flags = PYC_SYS3(__NR_fcntl, fd, F_GETFL_, 0);
    if (flags >= 0)
        PYC_SYS3(__NR_fcntl, fd, F_SETFL_, flags | NONBLOCK_);
}

uint32_t attached_generation(uint32_t attached) { return table[attached].generation; }

static bool is_of(uint32_t attached, uint32_t index) {
    return table[attached].fd != 0 && table[attached].container == index;
}

/* What an attached socket is waited for: room for output that is left, input if there is room. */
static void watch_attached(uint32_t attached) {
    struct attached *a = &table[attached];
    const struct container *c = &containers[a->container];
    uint32_t events = 0;
    if (a->sent < c->tty_out_bytes)
        events |= EPOLLOUT;
    if (a->input_bytes == 0)
        events |= EPOLLIN;
    rewatch(a->fd - 1, W_ATTACHED, attached, a->generation, events);
}

static void watch_master(uint32_t index) {
    struct container *c = &containers[index];
    /* Hang-up is reported whatever one asks for; edge-triggered it is reported once. */
    uint32_t events = c->tty_deaf ? EPOLLET : EPOLLIN;
    for (uint32_t i = 0; i < table_high; i++)
        if (is_of(i, index) && table[i].input_bytes > 0)
            events |= EPOLLOUT;
    if (c->master_fd >= 0)
        rewatch(c->master_fd, W_MASTER, index, c->generation, events);
}

static void detach(uint32_t attached) {
    struct attached *a = &table[attached];
    int fd = a->fd - 1;
    unwatch_close(&fd);
    a->fd = 0;
    a->generation++;
    if (a->input != NULL)
        PYC_SYS2(__NR_munmap, a->input, IN_ROOM);
    a->input = NULL;
    while (table_high > 0 && table[table_high - 1].fd == 0)
        table_high--;
}

/* Everybody has what the terminal said: the buffer is free, and we listen again. */
static void settle_output(uint32_t index) {
    struct container *c = &containers[index];
    for (uint32_t i = 0; i < table_high; i++)
        if (is_of(i, index) && table[i].sent < c->tty_out_bytes)
            return;
    for (uint32_t i = 0; i < table_high; i++)
        if (is_of(i, index))
            table[i].sent = 0;
    c->tty_out_bytes = 0;
    if (c->tty_deaf) {
        c->tty_deaf = false;
        watch_master(index);
    }
}

static void send_output(uint32_t attached) {
    struct attached *a = &table[attached];
    const struct container *c = &containers[a->container];
    while (a->fd != 0 && a->sent < c->tty_out_bytes) {
        long n = PYC_SYS6(__NR_sendto, a->fd - 1, c->tty_out + a->sent,
                          c->tty_out_bytes - a->sent, 0x4040 /* NOSIGNAL | DONTWAIT */, 0, 0);
        if (n == -EAGAIN)
            return;
        if (n == -EINTR)
            continue;
        if (n <= 0)
            detach(attached);
        else
            a->sent += (uint32_t)n;
    }
}

/* Sends what was appended to tty_out; whoever can't take all of it makes us deaf until it has. */
static void deliver(uint32_t index) {
    struct container *c = &containers[index];
    for (uint32_t i = 0; i < table_high; i++) {
        if (!is_of(i, index))
            continue;
        send_output(i);
        if (is_of(i, index) && table[i].sent < c->tty_out_bytes) {
            c->tty_deaf = true;
            watch_attached(i);
            watch_master(index);
        }
    }
    settle_output(index);
}

/* Reads the terminal once. Returns the bytes, 0 when it has none now, or -errno (-EIO: nobody has
 * the other end open). */
static long read_master(uint32_t index) {
    struct container *c = &containers[index];
    if (c->tty_out == NULL)
        c->tty_out = map_memory(OUT_ROOM, MAP_PRIVATE);
    if (c->tty_out == NULL)
        return -ENOMEM;
    uint32_t room = OUT_ROOM - c->tty_out_bytes;
    if (room > TTY_CHUNK_BYTES)
        room = TTY_CHUNK_BYTES;
    if (room == 0)
        return 0;
    long n = PYC_SYS3(__NR_read, c->master_fd, c->tty_out + c->tty_out_bytes, room);
    if (n > 0) {
        log_terminal(index, c->tty_out + c->tty_out_bytes, (uint32_t)n);
        c->tty_out_bytes += (uint32_t)n;
    }
    return n == -EAGAIN || n == -EINTR ? 0 : n;
}

/* Passes on what the attached have sent, as far as the terminal takes it. */
static void feed_terminal(uint32_t index) {
    const struct container *c = &containers[index];
    for (uint32_t i = 0; i < table_high; i++) {
        struct attached *a = &table[i];
        while (is_of(i, index) && a->input_bytes > 0) {
            long n = PYC_SYS3(__NR_write, c->master_fd, a->input + a->input_sent,
                              a->input_bytes - a->input_sent);
            if (n == -EINTR)
                continue;
            if (n == -EAGAIN || n == 0)
                break;
            a->input_sent = n < 0 ? a->input_bytes : a->input_sent + (uint32_t)n;
            if (a->input_sent >= a->input_bytes) {
                a->input_bytes = a->input_sent = 0;
                watch_attached(i);
            }
        }
    }
    watch_master(index);
}

void tty_opened(uint32_t index) {
    struct container *c = &containers[index];
    set_nonblocking(c->master_fd);
    watch(c->master_fd, W_MASTER, index, c->generation, EPOLLIN);
}

void tty_ready(uint32_t index, uint32_t events) {
    struct container *c = &containers[index];
    if ((events & EPOLLOUT) != 0)
        feed_terminal(index);
    if ((events & (EPOLLIN | EPOLLHUP)) == 0 || c->tty_deaf)
        return;
    long n = read_master(index);
    if (n > 0)
        deliver(index);
    else if (n < 0) /* hung up until somebody opens it again: told once, not for ever */
        rewatch(c->master_fd, W_MASTER, index, c->generation, EPOLLIN | EPOLLET);
}

/* Takes in what the terminal still holds; the process that wrote it has ended. */
void tty_drain(uint32_t index) {
    if (containers[index].master_fd < 0)
        return;
    while (read_master(index) > 0)
        ;
    deliver(index);
}

/* Nobody waits for output any more. */
bool tty_quiet(uint32_t index) {
    return containers[index].master_fd < 0 || containers[index].tty_out_bytes == 0;
}

/* Closes the terminal; the attached see end of file. */
void tty_close(uint32_t index) {
    struct container *c = &containers[index];
    for (uint32_t i = 0; i < MAX_ATTACHED && i < table_high; i++)
        if (is_of(i, index))
            detach(i);
    if (c->master_fd >= 0)
        keep_fd(index, STORED_MASTER, -1);
    unwatch_close(&c->master_fd);
    if (c->tty_out != NULL)
        PYC_SYS2(__NR_munmap, c->tty_out, OUT_ROOM);
    c->tty_out = NULL;
    c->tty_out_bytes = 0;
}

static void read_input(uint32_t attached) {
    struct attached *a = &table[attached];
    uint32_t index = a->container;
    if (a->input == NULL)
        a->input = map_memory(IN_ROOM, MAP_PRIVATE);
    if (a->input == NULL || a->input_bytes > 0)
        return;
    long n = PYC_SYS6(__NR_recvfrom, a->fd - 1, a->input, IN_ROOM, 0x40 /* DONTWAIT */, 0, 0);
    if (n == -EAGAIN || n == -EINTR)
        return;
    if (n <= 0) {
        detach(attached);
        settle_output(index);
        return;
    }
    a->input_bytes = (uint32_t)n;
    a->input_sent = 0;
    feed_terminal(index);
    if (is_of(attached, index))
        watch_attached(attached);
}

void attached_ready(uint32_t attached, uint32_t events) {
    struct attached *a = &table[attached];
    if (a->fd == 0)
        return;
    uint32_t index = a->container;
    if ((events & EPOLLOUT) != 0) {
        send_output(attached);
        if (a->fd != 0)
            watch_attached(attached);
        settle_output(index);
    }
    if (a->fd != 0 && a->input_bytes > 0 && (events & (EPOLLHUP | EPOLLERR)) != 0)
        /* Its last input still waits for the terminal; told again once that is taken. */
        rewatch(a->fd - 1, W_ATTACHED, attached, a->generation, EPOLLET);
    else if (a->fd != 0 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
        read_input(attached);
    if (containers[index].phase == C_LEFTOVER && tty_quiet(index))
        retry_leftover(index);
}

/* The socket `fd` is attached to the container's terminal; it is ours from then on. */
long attach(uint32_t index, int fd) {
    struct container *c = &containers[index];
    uint32_t i = 0;
    if (c->master_fd < 0)
        return -ENOTTY;
    while (i < table_high && table[i].fd != 0)
        i++;
    if (i == MAX_ATTACHED)
        return -EMFILE;
    struct attached *a = &table[i];
    uint32_t generation = a->generation + 1;
    long rc = watch(fd, W_ATTACHED, i, generation, EPOLLIN);
    if (rc < 0)
        return rc;
    set_nonblocking(fd);
    *a = (struct attached){.generation = generation, .fd = fd + 1, .container = index,
                           .sent = c->tty_out_bytes};
    if (i == table_high)
        table_high++;
    return 0;
}
