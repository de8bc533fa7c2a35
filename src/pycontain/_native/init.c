/* init.c: pid 1 of a container that asks for one (--init).
 *
 *     pycontain-init [-g] [--] COMMAND [ARGUMENT...]
 *
 * Runs COMMAND as its only child, passes on the signals that it gets (-g: to the child's process
 * group), reaps whatever is orphaned onto it, and ends when COMMAND ends: with its exit code, or
 * with 128 + the signal that ended it, as tini and docker-init do. (It can't die of that signal
 * itself: the kernel keeps signals without a handler from pid 1.) Pid 1 without this would ignore
 * SIGTERM, and leave zombies.
 * COMMAND that can't be executed: one line on stderr, and 127 (not found) or 126.
 * Source: pid_namespaces(7), signal(7), execvp(3).
 */
#include <asm/signal.h>
#include <linux/errno.h>
#include <linux/prctl.h>
#include <linux/wait.h>

#include "freestanding.h"
#include "sys.h"

#define TIOCSPGRP_ 0x5410
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define MAX_PATH 4096

typedef uint64_t signal_set;                   /* the kernel's sigset_t: signal n is bit n - 1 */
#define BIT(n) ((signal_set)1 << ((n)-1))

/* Faults are ours, not messages to pass on; blocked, they would be delivered again for ever. */
static const signal_set faults =
    BIT(SIGFPE) | BIT(SIGILL) | BIT(SIGSEGV) | BIT(SIGBUS) | BIT(SIGABRT) | BIT(SIGTRAP) | BIT(SIGSYS);

static void complain(const char *name, const char *what, long error) {
    char line[512], *at = pyc_put_text(line, "pycontain-init: ");
    size_t length = strlen(name);
    if (length > 300)
        length = 300;
    memcpy(at, name, length);
    at = pyc_put_text(at + length, ": ");
    at = pyc_put_text(at, what);
    if (error != 0) {
        at = pyc_put_text(at, " (errno ");
        at = pyc_put_decimal(at, (uint64_t)error, 1);
        *at++ = ')';
    }
    *at++ = '\n';
    PYC_SYS3(__NR_write, 2, line, at - line);
}

static const char *search_path(char **envp) {
    for (; *envp != NULL; envp++)
        if (memcmp(*envp, "PATH=", 5) == 0)
            return *envp + 5;
    return DEFAULT_PATH;
}

/* Executes the command, or returns the error that says most: one other than "not there". */
static long execute(char **argv, char **envp) {
    char path[MAX_PATH];
    size_t name_bytes = strlen(argv[0]) + 1;
    long worst = -ENOENT;
    for (const char *c = argv[0]; *c != '\0'; c++)
        if (*c == '/')
            return PYC_SYS3(__NR_execve, argv[0], argv, envp);
    if (name_bytes == 1)
        return -ENOENT;
    const char *dir = search_path(envp);
    for (;;) {
        size_t bytes = 0;
        while (dir[bytes] != ':' && dir[bytes] != '\0')
            bytes++;
        if (bytes + 1 + name_bytes <= sizeof path) {
            memcpy(path, dir, bytes);
            path[bytes] = '/';
            /* An empty element is the current directory. */
            memcpy(path + bytes + (bytes > 0), argv[0], name_bytes);
            long err = PYC_SYS3(__NR_execve, path, argv, envp);
            if (err == -E2BIG || err == -ENOMEM || err == -ENOEXEC)
                return err;
            if (err != -ENOENT && err != -ENOTDIR)
                worst = err;
        }
        if (dir[bytes] == '\0')
            return worst;
        dir += bytes + 1;
    }
}

/* In the child: own process group, in front on a terminal, fresh signals. */
static _Noreturn void become_command(char **argv, char **envp) {
    PYC_SYS2(__NR_setpgid, 0, 0);
    int group = (int)PYC_SYS0(__NR_getpid);
    PYC_SYS3(__NR_ioctl, 0, TIOCSPGRP_, &group); /* SIGTTOU is blocked; not a terminal: no matter */
    uint64_t handled[4] = {0}; /* SIG_DFL, no flags, no restorer, empty mask: on both machines */
    for (long n = 1; n < 65; n++)
        PYC_SYS4(__NR_rt_sigaction, n, handled, NULL, sizeof(signal_set));
    signal_set none = 0;
    PYC_SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none);
    long err = -execute(argv, envp);
    if (err == ENOENT)
        complain(argv[0], "not found", 0);
    else if (err == EACCES)
        complain(argv[0], "permission denied", 0);
    else if (err == ENOEXEC)
        complain(argv[0], "not an executable for this machine", 0);
    else
        complain(argv[0], "can't be executed", err);
    for (;;)
        PYC_SYS1(__NR_exit_group, err == ENOENT ? 127 : 126);
}

/* Reaps all that has ended; true once `child` is among it, with its wait status. */
static int reap(long child, int *ret_status) {
    int found = 0;
    for (;;) {
        int status;
        long pid = PYC_SYS4(__NR_wait4, -1, &status, WNOHANG, NULL);
        if (pid == -EINTR)
            continue;
        if (pid <= 0)
            return found;
        if (pid == child) {
            *ret_status = status;
            found = 1;
        }
    }
}

int pyc_main(int argc, char **argv, char **envp) {
    int at = 1, to_group = 0, status = 0;
    if (at < argc && strlen(argv[at]) == 2 && memcmp(argv[at], "-g", 2) == 0)
        to_group = 1, at++;
    if (at < argc && strlen(argv[at]) == 2 && memcmp(argv[at], "--", 2) == 0)
        at++;
    if (at >= argc) {
        complain("usage", "pycontain-init [-g] -- COMMAND [ARGUMENT...]", 0);
        return 125;
    }
    uint64_t default_action[4] = {0};
    signal_set waited = ~faults;
    /* An ignored SIGCHLD would make the kernel reap, and the exit code would be lost. */
    PYC_SYS4(__NR_rt_sigaction, SIGCHLD, default_action, NULL, sizeof waited);
    PYC_SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &waited, NULL, sizeof waited);
    if (PYC_SYS0(__NR_getpid) != 1)
        PYC_SYS5(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    long child = PYC_SYS5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
    if (child < 0) {
        complain(argv[at], "fork failed", -child);
        return 126;
    }
    if (child == 0)
        become_command(argv + at, envp);
    for (;;) {
        long number = PYC_SYS4(__NR_rt_sigtimedwait, &waited, NULL, NULL, sizeof waited);
        if (number == SIGCHLD) {
            if (reap(child, &status))
                return (status & 0x7f) == 0 ? status >> 8 & 0xff : 128 + (status & 0x7f);
        } else if (number > 0 && number != SIGTTIN && number != SIGTTOU) {
            /* Before the child has made its group there is only the child. */
            if (!to_group || PYC_SYS2(__NR_kill, -child, number) == -ESRCH)
                PYC_SYS2(__NR_kill, child, number);
        }
    }
}
