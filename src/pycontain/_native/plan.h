/* plan.h: the one contract between Python (the compiler), the monitor (the owner of processes)
 * and the child (the executor). C compiles this file; build.py feeds the marked region to CFFI,
 * so there is no second copy of any number in it.
 *
 * What travels, and who speaks when
 * ---------------------------------
 *   client (Python)            monitor (C)                      child (C, after clone3)
 *   SPAWN + memfd + fds  --->  check record and plan
 *                              clone3 into cgroup_slot    --->  close every fd but slots + status
 *                              write uid_map, gid_map
 *                              one byte                   --->  GATE(PYC_GATE_MAPPED)
 *                                                               ... ops ...
 *                              PARKED(op)                 <---  GATE(PYC_GATE_START)
 *   PARKED  <---
 *   START   --->               one byte                   --->  ... ops ... execveat
 *                              FAILED(op, errno)          <---  an op refused; child has exited
 *                              end of file                <---  exec succeeded (CLOEXEC)
 *   SPAWNED + pidfd | FAILED <---
 *                              pidfd readable: waitid(WNOWAIT), exit ops, write `exit`, reap
 *   EXIT    <---
 * End of file on the gate means that the monitor is gone: the child leaves.
 *
 * The memfd that comes with SPAWN:   [pyc_record .. record_bytes][pyc_plan .. plan bytes]
 * Both parts hold offsets, never pointers, and an arena of NUL-terminated strings each. Offset 0
 * of an arena is the empty string and stands for "not given". The record is what the monitor
 * keeps (verbatim in the state directory, so that a later monitor can adopt the container); the
 * plan is only for the child. Everything is checked in the monitor, before clone (plan_check.c).
 */
#ifndef PYCONTAIN_PLAN_H
#define PYCONTAIN_PLAN_H

#include <stdint.h>

/* CFFI-BEGIN  (cffi-legal only: enums, structs; append-only; bump PYC_ABI on any change) */
enum pyc_limits {
    PYC_ABI = 1,
    PYC_MAX_OPS = 1024,
    PYC_MAX_EXIT_OPS = 96,
    PYC_MAX_SLOTS = 160,
    PYC_MAX_BLOB_BYTES = 8388608,   /* memfd: record + plan */
    PYC_MAX_RECORD_BYTES = 16384,
    PYC_MAX_EXIT_BYTES = 65536,     /* EXIT message and `exit` file: header + collected text */
    PYC_ID_BYTES = 128,             /* container id, or "container/exec", with its NUL */
    PYC_MAX_FILTER = 4096           /* seccomp instructions (the kernel's BPF_MAXINSNS) */
};

enum pyc_opcode {
    PYC_OP_GATE = 1,           /* num0 = pyc_gate                                                */
    PYC_OP_SETSID = 2,
    PYC_OP_SETNS = 3,          /* slot0 = namespace fd or pidfd, num0 = CLONE_NEW* flags         */
    PYC_OP_UNSHARE = 4,        /* num0 = CLONE_NEW* flags                                        */
    PYC_OP_WRITE_FD = 5,       /* slot0 = open file, str0 = text                                 */
    PYC_OP_WRITE_AT = 6,       /* slot0 = trusted dir, str0 = path beneath, str1 = text          */
    PYC_OP_SETHOSTNAME = 7,    /* str0                                                           */
    PYC_OP_SETDOMAINNAME = 8,  /* str0                                                           */
    PYC_OP_LOOPBACK_UP = 9,
    PYC_OP_PROPAGATION = 10,   /* num0 = MS_* for the whole tree at "/"                          */
    PYC_OP_FSMOUNT = 11,       /* str0 = fs type, str1 = block of num0 "key[=value]" strings,
                                  num1 = MOUNT_ATTR_*, slot0 = out: detached mount               */
    PYC_OP_OPEN_TREE = 12,     /* slot0 = root fd or -1, str0 = path ("" = slot0 itself),
                                  num0 = OPEN_TREE_* | AT_*, slot1 = out                         */
    PYC_OP_MOUNT_SETATTR = 13, /* slot0 = mount, num0 = set, num1 = clear, num2 = propagation,
                                  slot1 = user namespace fd for MOUNT_ATTR_IDMAP or -1           */
    PYC_OP_MOVE_MOUNT = 14,    /* slot0 = detached mount, slot1 = root fd, str0 = destination    */
    PYC_OP_ATTACH_ROOT = 15,   /* slot0 = detached rootfs, str0 = directory to attach it on,
                                  slot1 = out: O_PATH fd of the attached root                    */
    PYC_OP_MKDIR = 16,         /* slot0 = root fd, str0 = path, num0 = mode                      */
    PYC_OP_MKNOD = 17,         /* slot0 = root fd, str0 = path, num0 = S_IF* | mode, num1 = dev,
                                  num2 = uid << 32 | gid                                         */
    PYC_OP_SYMLINK = 18,       /* slot0 = root fd, str0 = path, str1 = target                    */
    PYC_OP_MASK = 19,          /* slot0 = root fd, str0 = path, slot1 = tree of /dev/null,
                                  slot2 = tree of an empty read-only directory                   */
    PYC_OP_READONLY = 20,      /* slot0 = root fd, str0 = path                                   */
    PYC_OP_PIVOT_ROOT = 21,    /* slot0 = root fd                                                */
    PYC_OP_CHDIR = 22,         /* str0 = absolute path, num0 = uid << 32 | gid of a created one  */
    PYC_OP_STDIO = 23,         /* slot0 -> file descriptor num0                                  */
    PYC_OP_TERMINAL = 24,      /* slot0 = root fd, slot1 = socket for the master or -1 = monitor,
                                  num0 = rows << 32 | columns                                    */
    PYC_OP_RLIMIT = 25,        /* num0 = RLIMIT_*, num1 = soft, num2 = hard                      */
    PYC_OP_UMASK = 26,         /* num0                                                           */
    PYC_OP_KEYRING = 27,       /* str0 = name of the new session keyring                         */
    PYC_OP_CAP_BOUND = 28,     /* num0 = mask of capabilities kept in the bounding set           */
    PYC_OP_SETGROUPS = 29,     /* str0 = offset of num0 uint32_t                                 */
    PYC_OP_SETUSER = 30,       /* num0 = uid, num1 = gid; permitted capabilities are kept        */
    PYC_OP_CAPSET = 31,        /* num0 = effective, num1 = permitted, num2 = inheritable         */
    PYC_OP_CAP_AMBIENT = 32,   /* num0 = mask                                                    */
    PYC_OP_NO_NEW_PRIVS = 33,
    PYC_OP_SECCOMP = 34,       /* str0 = offset of num0 struct sock_filter (8-aligned),
                                  num1 = SECCOMP_FILTER_FLAG_*, slot0 = out: listener or -1      */
    PYC_OP_EXEC = 35,          /* str0 = block of num0 argv, str1 = block of num1 environment,
                                  str2 = block of num2 candidate paths, str3 = 8-aligned scratch
                                  of (num0 + num1 + 2) pointers, slot0 = file to execute or -1   */
    PYC_OP_PDEATHSIG = 36,     /* num0 = signal                                                  */
    PYC_OP_OPEN = 37,          /* slot0 = root fd, str0 = path, num0 = O_*, slot1 = out          */
    PYC_OP_CLOSE = 38,         /* slot0                                                          */
    PYC_OP_FSTYPE = 39,        /* slot0 must lie on a file system of magic num0                  */
    PYC_OP_PERSONALITY = 40,   /* num0                                                           */
    PYC_OP_JOIN_TIMENS = 41,   /* enter the time namespace made by UNSHARE (for children) now    */
    PYC_OP_LAST = 41
};

enum pyc_gate { PYC_GATE_MAPPED = 1, PYC_GATE_START = 2 };

enum pyc_op_flags {
    PYC_F_OPTIONAL = 1,        /* ENOENT is success (WRITE_AT, OPEN_TREE, MOVE_MOUNT)            */
    PYC_F_RECURSIVE = 2,       /* MOUNT_SETATTR: the whole tree                                  */
    PYC_F_MAKE_DIR = 4,        /* MOVE_MOUNT, CHDIR: create a missing directory (and parents)    */
    PYC_F_MAKE_FILE = 8,       /* MOVE_MOUNT: create a missing empty file (and parents)          */
    PYC_F_NO_SYMLINKS = 16,    /* the path must not contain any symbolic link (/proc, /sys)      */
    PYC_F_CONSOLE = 32,        /* TERMINAL: bind the terminal on /dev/console too                */
    PYC_F_EXIST_OK = 64        /* MKDIR, MKNOD, SYMLINK: an existing entry is success            */
};

struct pyc_op {                /* 64 bytes */
    uint32_t code, flags;
    uint32_t str[4];           /* offsets into the arena, 0 = not given                          */
    int32_t slot[3];           /* indexes into the fd table, -1 = not given                      */
    uint32_t pad;
    uint64_t num[3];
};

struct pyc_plan {
    uint32_t abi, total_bytes;     /* of the plan part                                           */
    uint32_t op_count, op_offset;  /* 8-aligned, from the start of struct pyc_plan               */
    uint32_t arena_offset, arena_bytes;
    uint32_t fd_count;             /* slots 0 .. fd_count-1 arrive with the message              */
    uint32_t slot_count;           /* slots used in all, received and made by ops                */
    uint64_t clone_flags;          /* CLONE_NEW* only                                            */
    int32_t cgroup_slot;           /* CLONE_INTO_CGROUP, or -1                                   */
    int32_t pidns_slot;            /* exec: pidfd of the container; join its pid namespace       */
    uint32_t uid_map, gid_map;     /* text for /proc/PID/{uid,gid}_map, written by the monitor   */
    uint32_t setgroups;            /* "deny" or not given                                        */
    uint32_t pad;
};

enum pyc_exit_opcode {             /* done by the monitor once the process has ended, in order   */
    PYC_EXIT_READ = 1,             /* str0 = path, str1 = label: append "=label\n<text>"         */
    PYC_EXIT_RMDIR = 2,            /* str0 = path of a cgroup; retried while busy                */
    PYC_EXIT_WRITE = 3             /* str0 = path, str1 = text (cgroup.kill before RMDIR)        */
};

struct pyc_exit_op { uint32_t code, flags; uint32_t str[2]; };

enum pyc_record_flags {
    PYC_R_LIFELINE = 1,        /* kill the container when the connection that spawned it closes  */
    PYC_R_QUIET = 2,           /* do not send SPAWNED, only FAILED or EXIT                       */
    PYC_R_PARK = 4,            /* the plan has GATE(START): reply PARKED when it is reached      */
    PYC_R_TERMINAL = 8,        /* the child sends a terminal's master                            */
    PYC_R_LOG = 16,            /* pump the FIFOs `out` and `err` (or the terminal) into the log  */
    PYC_R_EPHEMERAL = 32       /* no `live` and `exit` files: the owner's connection is enough   */
};

struct pyc_record {
    uint32_t abi, record_bytes;    /* this part, 8-aligned; the plan follows                     */
    uint32_t flags, pad;
    uint32_t arena_offset, arena_bytes;
    uint32_t exit_op_count, exit_op_offset;
    uint32_t id;                   /* "container" or "container/exec": unique among the living   */
    uint32_t state_dir;            /* absolute; holds live, exit, out, err, in                   */
    uint32_t log_path;             /* absolute; rotated to .1, .2, ...                           */
    uint32_t kill_path;            /* absolute, a cgroup.kill file; not given: signal the pid    */
    uint64_t log_max_bytes;        /* per file, 0 = 16 MiB                                       */
    uint32_t log_max_files, pad2;  /* in all, 0 = 2                                              */
    uint64_t timeout_usec;         /* 0 = none; counted from the release of the last gate        */
    /* Filled in by the monitor before it is written to `live`: */
    uint64_t pid_start_ticks;      /* field 22 of /proc/PID/stat                                 */
    int32_t pid, status;           /* enum pyc_status                                            */
    uint64_t started_usec;         /* CLOCK_REALTIME                                             */
    uint64_t deadline_usec;        /* CLOCK_BOOTTIME, 0 = none                                   */
};

enum pyc_status { PYC_ST_SPAWNING = 1, PYC_ST_PARKED = 2, PYC_ST_RUNNING = 3, PYC_ST_EXITED = 4 };

/* child -> monitor on the status socket; one datagram each */
enum pyc_report_kind { PYC_REPORT_FAILED = 1, PYC_REPORT_PARKED = 2, PYC_REPORT_MASTER = 3 };
struct pyc_report { uint32_t kind; uint32_t op_index; uint32_t opcode; int32_t err; };

/* client -> monitor, SOCK_SEQPACKET, one datagram each */
enum pyc_request_kind {
    PYC_REQ_SPAWN = 1,         /* fds: memfd, then slots 0 .. fd_count-1                         */
    PYC_REQ_START = 2,         /* open GATE(START) of `id`; reply OK, SPAWNED or FAILED follow   */
    PYC_REQ_WAIT = 3,          /* reply EXIT when `id` ends; FAILED(ENOENT) if not alive here    */
    PYC_REQ_ATTACH = 4,        /* fds: stream socket; relays the terminal of `id`; reply OK      */
    PYC_REQ_RESIZE = 5,        /* num0 = rows << 32 | columns; reply OK                          */
    PYC_REQ_INFO = 6,          /* reply INFO                                                     */
    PYC_REQ_SHUTDOWN = 7,      /* leave now if nothing is alive; reply OK or FAILED(EBUSY)       */
    PYC_REQ_DEADLINE = 8       /* num0 = usec from now, 0 = none; reply OK                       */
};
struct pyc_request { uint32_t abi, kind; uint64_t num[2]; char id[128]; };

/* monitor -> client */
enum pyc_reply_kind {
    PYC_REP_OK = 1,
    PYC_REP_FAILED = 2,        /* err, stage; stage PYC_STAGE_OP: op_index and opcode too        */
    PYC_REP_PARKED = 3,        /* pid, fd: pidfd                                                 */
    PYC_REP_SPAWNED = 4,       /* pid, fd: pidfd                                                 */
    PYC_REP_EXIT = 5,          /* struct pyc_exit and its text                                   */
    PYC_REP_INFO = 6           /* num0 = alive, num1 = clients, pid = the monitor's              */
};
enum pyc_stage {               /* where a FAILED comes from                                      */
    PYC_STAGE_REQUEST = 1,     /* malformed request, or nothing called `id`                      */
    PYC_STAGE_RECORD = 2,      /* record refused (plan_check.c); op_index = the check's line     */
    PYC_STAGE_PLAN = 3,        /* plan refused; op_index = the op, opcode = the check's line     */
    PYC_STAGE_CLONE = 4,       /* clone3, cgroup entry                                           */
    PYC_STAGE_MAP = 5,         /* uid_map, gid_map                                               */
    PYC_STAGE_OP = 6,          /* an op in the child                                             */
    PYC_STAGE_STATE = 7,       /* state directory, FIFOs or log                                  */
    PYC_STAGE_DIED = 8         /* the child was killed before exec; err = signal                 */
};
struct pyc_reply {
    uint32_t abi, kind;
    uint32_t stage, op_index, opcode;
    int32_t err, pid;
    uint32_t pad;
    uint64_t num[2];
};

enum pyc_exit_flags {
    PYC_X_TIMED_OUT = 1,       /* the monitor killed it at its deadline                          */
    PYC_X_OWNER_GONE = 2,      /* the monitor killed it: LIFELINE                                */
    PYC_X_UNKNOWN = 4,         /* it ended while no monitor lived and the kernel has forgotten   */
    PYC_X_TRUNCATED = 8        /* collected text did not fit                                     */
};
struct pyc_exit {
    uint32_t abi, kind;        /* PYC_REP_EXIT                                                   */
    uint32_t flags;
    int32_t code, status;      /* siginfo: CLD_EXITED and exit code, or CLD_KILLED and signal    */
    int32_t pid;
    uint64_t started_usec, ended_usec;             /* CLOCK_REALTIME                             */
    uint64_t duration_usec;                        /* CLOCK_MONOTONIC; 0 if adopted              */
    uint64_t utime_usec, stime_usec, maxrss_bytes; /* rusage of the process and its waited-for   */
    uint64_t minflt, majflt, inblock, oublock, nvcsw, nivcsw;
    uint32_t text_bytes, pad;                      /* what follows this header                   */
};
/* CFFI-END */

_Static_assert(sizeof(struct pyc_op) == 64, "pyc_op is part of the ABI");
_Static_assert(sizeof(struct pyc_plan) == 64, "pyc_plan is part of the ABI");
_Static_assert(sizeof(struct pyc_record) == 104, "pyc_record is part of the ABI");
_Static_assert(sizeof(struct pyc_exit_op) == 16, "pyc_exit_op is part of the ABI");
_Static_assert(sizeof(struct pyc_report) == 16, "pyc_report is part of the ABI");
_Static_assert(sizeof(struct pyc_request) == 152, "pyc_request is part of the ABI");
_Static_assert(sizeof(struct pyc_reply) == 48, "pyc_reply is part of the ABI");

/* plan_check.c. A check returns 0, or -EINVAL with the refused op and the line of the check. */
struct pyc_refusal { uint32_t op_index; uint32_t line; };
int pyc_record_check(const void *blob, uint64_t blob_bytes, struct pyc_refusal *ret_refusal);
int pyc_plan_check(const void *plan, uint64_t plan_bytes, uint32_t fds_received,
                   struct pyc_refusal *ret_refusal);

/* child.c. Runs after clone3 in the child; never returns. `plan` has passed pyc_plan_check and is
 * private writable memory; `fds` holds the received slots, the rest is -1. */
_Noreturn void pyc_child(void *plan, int *fds, int status_fd);

#endif
