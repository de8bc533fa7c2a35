/* hello_report.c: what a process can find out about its own isolation.
 *
 * System calls first, /proc and /sys where there is no other way; what can't be read is said to be
 * unknown (null in JSON) instead of failing, for a container may well have neither.
 */
#include <linux/capability.h>
#include <linux/fcntl.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/sockios.h>
#include <linux/utsname.h>

#include "hello.h"

/* <linux/if.h> includes libc's headers. */
struct interface { /* struct ifreq */
    char name[16];
    union {
        int index;
        short flags;
        uint8_t address[24]; /* struct sockaddr_in: the IPv4 address is at 4 */
    };
};
#define AF_INET_ 2
#define AF_INET6_ 10
#define SOCK_DGRAM_ 2
#define IFF_UP_ 1

/* ---- files ---------------------------------------------------------------------------------- */

static char file_text[65536];

/* Returns the whole text of a file, in file_text, or NULL. */
static char *slurp(const char *path) {
    long fd = PYC_SYS4(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    size_t have = 0;
    long n = 1;
    if (fd < 0)
        return NULL;
    while (have < sizeof file_text - 1 && n > 0) {
        n = PYC_SYS3(__NR_read, fd, file_text + have, sizeof file_text - 1 - have);
        have += n > 0 ? (size_t)n : 0;
    }
    PYC_SYS1(__NR_close, fd);
    file_text[have] = '\0';
    return n < 0 ? NULL : file_text;
}

/* Ends the line at `at`; returns the next one, or NULL. */
static char *cut_line(char *at) {
    while (*at != '\n' && *at != '\0')
        at++;
    if (*at == '\0')
        return NULL;
    *at = '\0';
    return at[1] == '\0' ? NULL : at + 1;
}

static void first_line(const char *name, const char *path, const char *otherwise) {
    char *value = slurp(path);
    static char unlimited[] = "max";
    if (value == NULL && otherwise != NULL)
        value = slurp(otherwise);
    if (value != NULL)
        cut_line(value);
    /* How cgroup v1 says "no limit". */
    if (value != NULL && (memcmp(value, "-1", 3) == 0 || memcmp(value, "9223372036854", 13) == 0))
        value = unlimited;
    text(name, value);
}

/* Ends the word at `*at` and moves `*at` to the next one. */
static char *word(char **at) {
    char *c = *at, *start;
    while (*c == ' ' || *c == '\t')
        c++;
    start = c;
    while (*c != ' ' && *c != '\t' && *c != '\0')
        c++;
    *at = *c == '\0' ? c : c + 1;
    *c = '\0';
    return start;
}

/* ---- sections ------------------------------------------------------------------------------- */

static void process(void) {
    struct new_utsname names = {0};
    PYC_SYS1(__NR_uname, &names);
    section("process");
    number("pid", (uint64_t)PYC_SYS0(__NR_getpid));
    number("parent", (uint64_t)PYC_SYS0(__NR_getppid));
    number("uid", (uint64_t)PYC_SYS0(__NR_getuid));
    number("gid", (uint64_t)PYC_SYS0(__NR_getgid));
    text("hostname", names.nodename);
    text("domainname", names.domainname);
    text("kernel", names.release);
    text("machine", names.machine);
    begin_list("open files");
    for (int fd = 0; fd < 1024; fd++)
        if (PYC_SYS2(__NR_fcntl, fd, F_GETFD) >= 0) {
            next_item(3);
            say_number((uint64_t)fd);
        }
    end_list("none");
}

static void id_map(const char *name, const char *path) {
    char *line = slurp(path);
    if (line == NULL) {
        text(name, NULL);
        return;
    }
    begin_list(name);
    while (line != NULL && *line != '\0') {
        char *next = cut_line(line), entry[80], *to = entry;
        to = pyc_put_text(to, word(&line)); /* inside:outside:count */
        *to++ = ':';
        to = pyc_put_text(to, word(&line));
        *to++ = ':';
        *pyc_put_text(to, word(&line)) = '\0';
        item(entry);
        line = next;
    }
    end_list("empty");
}

static void namespaces(void) {
    static const char *const kinds[] = {"cgroup", "ipc",  "mnt",  "net",
                                        "pid",    "time", "user", "uts"};
    section("namespaces");
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char path[32], target[64];
        *pyc_put_text(pyc_put_text(path, "/proc/self/ns/"), kinds[i]) = '\0';
        long n = PYC_SYS4(__NR_readlinkat, AT_FDCWD, path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = '\0';
        text(kinds[i], n > 0 ? target : NULL);
    }
    id_map("uid map", "/proc/self/uid_map");
    id_map("gid map", "/proc/self/gid_map");
}

static const char *const capability_names[] = {
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
    "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
    "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
    "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore"};
#define CAPABILITIES (int)(sizeof capability_names / sizeof capability_names[0])

static void capability_set(const char *name, uint64_t mask) {
    begin_list(name);
    for (int n = 0; n < CAPABILITIES; n++)
        if (mask >> n & 1)
            item(capability_names[n]);
    end_list("none");
}

static uint64_t capability_query(long option, long argument) {
    uint64_t mask = 0;
    for (long n = 0; n < CAPABILITIES; n++) {
        long two = argument == 0 ? n : argument, three = argument == 0 ? 0 : n;
        if (PYC_SYS5(__NR_prctl, option, two, three, 0, 0) == 1)
            mask |= (uint64_t)1 << n;
    }
    return mask;
}

static void rights(void) {
    static const char *const modes[] = {"off", "strict", "filter"};
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    section("rights");
    long mode = PYC_SYS5(__NR_prctl, PR_GET_SECCOMP, 0, 0, 0, 0);
    text("seccomp", mode >= 0 && mode <= 2 ? modes[mode] : NULL);
    const char *filters = NULL;
    for (char *line = slurp("/proc/self/status"); line != NULL;) {
        char *next = cut_line(line);
        if (memcmp(line, "Seccomp_filters:\t", 17) == 0)
            filters = line + 17;
        line = next;
    }
    text("seccomp filters", filters);
    truth("no new privs", PYC_SYS5(__NR_prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    PYC_SYS2(__NR_capget, &header, data);
    capability_set("effective", data[0].effective | (uint64_t)data[1].effective << 32);
    capability_set("permitted", data[0].permitted | (uint64_t)data[1].permitted << 32);
    capability_set("inheritable", data[0].inheritable | (uint64_t)data[1].inheritable << 32);
    capability_set("bounding", capability_query(PR_CAPBSET_READ, 0));
    capability_set("ambient", capability_query(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET));
}

static void rlimit(const char *name, int resource) {
    uint64_t limits[2] = {0, 0};
    char value[64], *at = value;
    PYC_SYS4(__NR_prlimit64, 0, resource, NULL, limits);
    for (int i = 0; i < 2; i++) {
        at = limits[i] == UINT64_MAX ? pyc_put_text(at, "max") : pyc_put_decimal(at, limits[i], 1);
        *at++ = i == 0 ? ' ' : '\0';
    }
    text(name, value);
}

static void limits(void) {
    section("limits");
    first_line("memory.max", "/sys/fs/cgroup/memory.max",
               "/sys/fs/cgroup/memory/memory.limit_in_bytes");
    first_line("memory.swap.max", "/sys/fs/cgroup/memory.swap.max", NULL);
    first_line("cpu.max", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    first_line("pids.max", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max");
    rlimit("nofile", RLIMIT_NOFILE);
    rlimit("nproc", RLIMIT_NPROC);
    rlimit("core", RLIMIT_CORE);
    rlimit("stack", RLIMIT_STACK);
}

/* Connecting a datagram socket asks the routing table and sends nothing. The addresses are those
 * set aside for documentation (RFC 5737, RFC 3849). */
static int has_route(int family) {
    /* sockaddr_in: family, port, address; sockaddr_in6: family, port, flow, address, scope */
    uint8_t v4[16] = {AF_INET_, 0, 0, 9, 192, 0, 2, 1};
    uint8_t v6[28] = {AF_INET6_, 0, 0, 9, 0, 0, 0, 0, 0x20, 0x01, 0x0d, 0xb8, [23] = 1};
    long fd = PYC_SYS3(__NR_socket, family, SOCK_DGRAM_, 0);
    if (fd < 0)
        return 0;
    long err = family == AF_INET_ ? PYC_SYS3(__NR_connect, fd, v4, sizeof v4)
                                  : PYC_SYS3(__NR_connect, fd, v6, sizeof v6);
    PYC_SYS1(__NR_close, fd);
    return err == 0;
}

static void network(void) {
    struct interface request = {0};
    section("network");
    long fd = PYC_SYS3(__NR_socket, AF_INET_, SOCK_DGRAM_, 0);
    begin_list("interfaces");
    for (int index = 1; fd >= 0 && index < 2048; index++) {
        request.index = index;
        if (PYC_SYS3(__NR_ioctl, fd, SIOCGIFNAME, &request) < 0)
            continue;
        char entry[64], *at = pyc_put_text(entry, request.name);
        if (PYC_SYS3(__NR_ioctl, fd, SIOCGIFFLAGS, &request) == 0 && !(request.flags & IFF_UP_))
            at = pyc_put_text(at, "(down)");
        if (PYC_SYS3(__NR_ioctl, fd, SIOCGIFADDR, &request) == 0) {
            for (int i = 0; i < 4; i++) {
                *at++ = i == 0 ? '=' : '.';
                at = pyc_put_decimal(at, request.address[4 + i], 1);
            }
        }
        *at = '\0';
        item(entry);
    }
    end_list("none");
    if (fd >= 0)
        PYC_SYS1(__NR_close, fd);
    truth("IPv4 route out", has_route(AF_INET_));
    truth("IPv6 route out", has_route(AF_INET6_));
}

static void mount(int as_json, const char *target, const char *type, int read_only) {
    if (as_json) {
        begin_item();
        text("target", target);
        text("type", type);
        truth("read only", read_only);
        say("}");
    } else {
        say("  ");
        say(read_only ? "ro  " : "rw  ");
        say(type);
        pad(strlen(type), 10);
        say(target);
        say("\n");
    }
}

/* proc(5), mountinfo: id parent dev root TARGET OPTIONS [tags] - TYPE source options */
static void mounts(int as_json) {
    char *line = slurp("/proc/self/mountinfo");
    section("mounts");
    if (line == NULL) {
        text("table", NULL);
        return;
    }
    if (as_json)
        begin_list("table");
    while (line != NULL && *line != '\0') {
        char *next = cut_line(line), *target = NULL, *options;
        for (int i = 0; i < 5; i++)
            target = word(&line);
        options = word(&line);
        while (*line != '\0' && memcmp(word(&line), "-", 2) != 0) {
        }
        mount(as_json, target, word(&line), memcmp(options, "ro", 2) == 0);
        line = next;
    }
    if (as_json)
        end_list("");
}

void report(int as_json) {
    begin_report(as_json);
    if (!as_json)
        say("Hello from a container. This is all that it can see:\n");
    process();
    namespaces();
    rights();
    limits();
    network();
    mounts(as_json);
    end_report();
}
