/* hello.c: the program in the image pycontain/hello. Alone it says what its container looks like
 * from inside (hello_report.c); its options make it use resources, fail and die on demand, so that
 * limits and exit codes can be seen to work. No libc, no shell, no files needed.
 */
#include "hello.h"

#include <asm/signal.h>
#include <linux/errno.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/time.h>

static const char usage[] =
    "/hello [OPTION...]   says how isolated it is; or does what the options say, in order\n"
    "  --report           say it (what no option means)\n"
    "  --json             say it as JSON\n"
    "  --burn SECONDS     keep one CPU busy\n"
    "  --alloc BYTES      take memory and touch it (K, M, G)\n"
    "  --fork N           have N children at once\n"
    "  --sleep SECONDS    wait\n"
    "  --signal N         send itself a signal\n"
    "  --exit N           exit with code N\n"
    "  --help             this\n";

static char buffer[4096];
static size_t used;

void say_flush(void) {
    size_t done = 0;
    while (done < used) {
        long n = PYC_SYS3(__NR_write, 1, buffer + done, used - done);
        if (n == -EINTR || n == -EAGAIN)
            continue;
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    used = 0;
}

void say(const char *text) {
    for (; *text != '\0'; text++) {
        if (used == sizeof buffer)
            say_flush();
        buffer[used++] = *text;
    }
}

void say_number(uint64_t value) {
    char digits[24];
    *pyc_put_decimal(digits, value, 1) = '\0';
    say(digits);
}

static int same(const char *a, const char *b) {
    return strlen(a) == strlen(b) && memcmp(a, b, strlen(a)) == 0;
}

static void say_error(long error) {
    say(error == EAGAIN   ? "EAGAIN"
        : error == ENOMEM ? "ENOMEM"
        : error == EPERM  ? "EPERM"
        : error == ENOSYS ? "ENOSYS"
                          : "error");
    say(" (");
    say_number((uint64_t)error);
    say(")");
}

static uint64_t now_msec(int clock) {
    int64_t t[2] = {0, 0}; /* struct timespec */
    PYC_SYS2(__NR_clock_gettime, clock, t);
    return (uint64_t)t[0] * 1000 + (uint64_t)t[1] / 1000000;
}

/* "1.25" is 1250. */
static uint64_t thousandths(const char *text) {
    uint64_t value = pyc_decimal(text) * 1000;
    while (*text >= '0' && *text <= '9')
        text++;
    if (*text != '.')
        return value;
    for (uint64_t unit = 100; unit > 0 && text[1] >= '0' && text[1] <= '9'; unit /= 10)
        value += unit * (uint64_t)(*++text - '0');
    return value;
}

static uint64_t bytes_of(const char *text) {
    uint64_t value = pyc_decimal(text);
    while (*text >= '0' && *text <= '9')
        text++;
    switch (*text | 0x20) {
    case 'g':
        value *= 1024; /* fallthrough */
    case 'm':
        value *= 1024; /* fallthrough */
    case 'k':
        value *= 1024;
    }
    return value;
}

static int burn(const char *argument) {
    uint64_t length = thousandths(argument), began = now_msec(CLOCK_MONOTONIC);
    uint64_t cpu_began = now_msec(CLOCK_PROCESS_CPUTIME_ID);
    while (now_msec(CLOCK_MONOTONIC) - began < length)
        for (volatile int i = 0; i < 100000; i++) {
        }
    say("burned ");
    say_number(now_msec(CLOCK_PROCESS_CPUTIME_ID) - cpu_began);
    say(" ms of CPU in ");
    say_number(now_msec(CLOCK_MONOTONIC) - began);
    say(" ms\n");
    return 0;
}

static int alloc(const char *argument) {
    uint64_t bytes = bytes_of(argument);
    long at = PYC_SYS6(__NR_mmap, NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at < 0 && at > -4096) {
        say("could not allocate ");
        say_number(bytes);
        say(" bytes: ");
        say_error(-at);
        say("\n");
        return 1;
    }
    say_flush();
    for (uint64_t i = 0; i < bytes; i += 4096)
        ((volatile char *)at)[i] = 1;
    say("allocated ");
    say_number(bytes);
    say(" bytes\n");
    return 0;
}

static int fork_many(const char *argument) {
    uint64_t wanted = pyc_decimal(argument), made = 0;
    if (wanted > 1 << 20)
        wanted = 1 << 20;
    long at = PYC_SYS6(__NR_mmap, NULL, wanted * sizeof(int) + 1, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at < 0 && at > -4096)
        return 1;
    int *pids = (int *)at;
    long error = 0;
    say_flush();
    for (; made < wanted; made++) {
        long pid = PYC_SYS5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
        if (pid < 0) {
            error = -pid;
            break;
        }
        if (pid == 0) {
            PYC_SYS5(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
            for (;;)
                PYC_SYS5(__NR_ppoll, NULL, 0, NULL, NULL, 0);
        }
        pids[made] = (int)pid;
    }
    for (uint64_t i = 0; i < made; i++)
        PYC_SYS2(__NR_kill, pids[i], SIGKILL);
    for (uint64_t i = 0; i < made; i++)
        while (PYC_SYS4(__NR_wait4, pids[i], NULL, 0, NULL) == -EINTR) {
        }
    say("forked ");
    say_number(made);
    say(" of ");
    say_number(wanted);
    if (error != 0) {
        say(": ");
        say_error(error);
    }
    say("\n");
    return error != 0;
}

static int sleep_for(const char *argument) {
    uint64_t msec = thousandths(argument);
    int64_t t[2] = {(int64_t)(msec / 1000), (int64_t)(msec % 1000) * 1000000};
    say_flush();
    while (PYC_SYS4(__NR_clock_nanosleep, CLOCK_MONOTONIC, 0, t, t) == -EINTR) {
    }
    return 0;
}

/* The kernel keeps even SIGKILL from a pid 1 that sends it to itself, but not a real fault. */
static int die_of(const char *argument) {
    uint64_t number = pyc_decimal(argument), nothing[4] = {0}, none = 0;
    say_flush();
    PYC_SYS4(__NR_rt_sigaction, number, nothing, NULL, 8);
    PYC_SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8);
    PYC_SYS2(__NR_kill, PYC_SYS0(__NR_getpid), number);
    int *volatile nowhere = NULL;
    if (number == SIGSEGV)
        *nowhere = 0;
    if (number == SIGILL) {
#if defined(__x86_64__)
        __asm__ volatile("ud2");
#else
        __asm__ volatile(".inst 0");
#endif
    }
    say("signal ");
    say_number(number);
    say(" did not end process ");
    say_number((uint64_t)PYC_SYS0(__NR_getpid));
    say("\n");
    return 1;
}

static const struct {
    const char *option;
    int (*act)(const char *argument);
} actions[] = {
    {"--burn", burn},       {"--alloc", alloc},   {"--fork", fork_many},
    {"--sleep", sleep_for}, {"--signal", die_of},
};

static int refuse(const char *option) {
    say("/hello: ");
    say(option);
    say(": unknown option, or its argument is missing or not a number\n\n");
    say(usage);
    say_flush();
    return 2;
}

int pyc_main(int argc, char **argv, char **envp) {
    (void)envp;
    int code = 0;
    if (argc < 2)
        report(0);
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *argument = i + 1 < argc ? argv[i + 1] : NULL;
        int has_number = argument != NULL && *argument >= '0' && *argument <= '9';
        if (same(option, "--report") || same(option, "--json")) {
            report(same(option, "--json"));
        } else if (same(option, "--help")) {
            say(usage);
        } else if (same(option, "--exit") && has_number) {
            code = (int)pyc_decimal(argument) & 0xff;
            break;
        } else {
            size_t n = 0;
            while (n < sizeof actions / sizeof actions[0] && !same(option, actions[n].option))
                n++;
            if (n == sizeof actions / sizeof actions[0] || !has_number)
                return refuse(option);
            code |= actions[n].act(argument);
            say_flush();
            i++;
        }
    }
    say_flush();
    return code;
}
