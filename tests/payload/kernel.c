/* Acts on kernel interfaces that a payload has no business with, and foreign call conventions. */
#include "probe.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>

static int refused(long rc) { return rc < 0 ? -1 : 0; }

static int act_bpf(int argc, char **argv) {
    (void)argc, (void)argv;
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_type = BPF_MAP_TYPE_ARRAY;
    attr.key_size = attr.value_size = 4;
    attr.max_entries = 1;
    return refused(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
}

/* perf: a software counter of this process without kernel events, the mildest that exists. */
static int act_perf(int argc, char **argv) {
    (void)argc, (void)argv;
    struct perf_event_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.size = sizeof attr;
    attr.type = PERF_TYPE_SOFTWARE;
    attr.config = PERF_COUNT_SW_TASK_CLOCK;
    attr.exclude_kernel = attr.exclude_hv = attr.disabled = 1;
    return refused(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
}

static int act_io_uring(int argc, char **argv) {
    (void)argc, (void)argv;
    unsigned char params[120] = {0};
    return refused(syscall(SYS_io_uring_setup, 4, params));
}

static int act_userfaultfd(int argc, char **argv) {
    (void)argc, (void)argv;
    return refused(syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */));
}

static int act_add_key(int argc, char **argv) {
    (void)argc, (void)argv;
    return refused(syscall(SYS_add_key, "user", "probe", "x", 1, KEY_SPEC_PROCESS_KEYRING));
}

static int act_request_key(int argc, char **argv) {
    (void)argc, (void)argv;
    /* Searching for a key that is not there says ENOKEY where the call is not blocked. */
    long rc = syscall(SYS_request_key, "user", "probe-absent", NULL, KEY_SPEC_SESSION_KEYRING);
    return rc < 0 && errno != ENOKEY ? -1 : 0;
}

/* keyctl join|parent|session|search NAME */
static int act_keyctl(int argc, char **argv) {
    const char *how = arg(argc, argv, 1, "join");
    if (strcmp(how, "parent") == 0)
        return refused(syscall(SYS_keyctl, KEYCTL_SESSION_TO_PARENT));
    if (strcmp(how, "session") == 0)
        return refused(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0));
    if (strcmp(how, "search") == 0)
        return refused(syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user",
                               arg(argc, argv, 2, ""), 0));
    return refused(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, arg(argc, argv, 2, NULL)));
}

/* plant-key NAME: a key in the session keyring that commands of this caller inherit. */
static int act_plant_key(int argc, char **argv) {
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "e2e") < 0)
        return -1;
    const char *name = arg(argc, argv, 1, "e2e-secret");
    if (syscall(SYS_add_key, "user", name, "secret", 6, KEY_SPEC_SESSION_KEYRING) < 0)
        return -1;
    if (argc > 2) {
        execvp(argv[2], argv + 2);
        return -1;
    }
    return 0;
}

#if defined(__x86_64__)
/* int80: getpid by the i386 entry. */
static int act_int80(int argc, char **argv) {
    long rc = number(argc, argv, 1, 20);
    __asm__ volatile("int $0x80" : "+a"(rc) : "b"(0), "c"(0), "d"(0) : "memory");
    if (rc >= 0)
        return 0;
    errno = -rc;
    return -1;
}

/* x32: getpid with the x32 bit; `x32 NR` for another call. */
static int act_x32(int argc, char **argv) {
    return refused(syscall(0x40000000L | number(argc, argv, 1, SYS_getpid)));
}
#else
static int act_int80(int argc, char **argv) {
    (void)argc, (void)argv;
    raise(SIGSYS);
    return -1;
}
#define act_x32 act_int80
#endif

/* syscall NR [ARGS]: any call by number. */
static int act_syscall(int argc, char **argv) {
    return refused(syscall(number(argc, argv, 1, 9999), number(argc, argv, 2, 0),
                           number(argc, argv, 3, 0), number(argc, argv, 4, 0),
                           number(argc, argv, 5, 0), number(argc, argv, 6, 0)));
}

/* settime: to what the clock says already, so that even a success changes nothing. */
static int act_settime(int argc, char **argv) {
    (void)argc, (void)argv;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return clock_settime(CLOCK_REALTIME, &now);
}

/* adjtime: rewrites the tick length with its present value. */
static int act_adjtime(int argc, char **argv) {
    (void)argc, (void)argv;
    struct timex t = {.modes = 0};
    if (adjtimex(&t) < 0)
        return -1;
    t.modes = ADJ_TICK;
    return refused(adjtimex(&t));
}

/* swapoff, acct, quota …: with arguments that can do nothing, so that only the refusal differs. */
static int act_swapoff(int argc, char **argv) {
    (void)argc, (void)argv;
    long rc = syscall(SYS_swapoff, "/nonexistent");
    return rc < 0 && errno != ENOENT ? -1 : 0;
}

static int act_acct(int argc, char **argv) {
    (void)argc, (void)argv;
    long rc = syscall(SYS_acct, "/nonexistent");
    return rc < 0 && errno != ENOENT && errno != ENOSYS ? -1 : 0;
}

/* reboot: with wrong magic numbers, so that a permitted call says EINVAL. */
static int act_reboot(int argc, char **argv) {
    (void)argc, (void)argv;
    long rc = syscall(SYS_reboot, 0, 0, 0, NULL);
    return rc < 0 && errno != EINVAL ? -1 : 0;
}

/* module: an empty image, which a permitted call refuses with ENOEXEC or EFAULT. */
static int act_module(int argc, char **argv) {
    (void)argc, (void)argv;
    long rc = syscall(SYS_init_module, NULL, 0UL, "");
    return rc < 0 && errno != ENOEXEC && errno != EFAULT && errno != EINVAL ? -1 : 0;
}

/* kexec: no segments and wrong flags, which a permitted call refuses with EINVAL. */
static int act_kexec(int argc, char **argv) {
    (void)argc, (void)argv;
    long rc = syscall(SYS_kexec_load, 0UL, 17UL, NULL, ~0UL);
    return rc < 0 && errno != EINVAL ? -1 : 0;
}

static int act_syslog(int argc, char **argv) {
    (void)argc, (void)argv;
    char buffer[64];
    return refused(klogctl(3, buffer, sizeof buffer));
}

static int act_fanotify(int argc, char **argv) {
    (void)argc, (void)argv;
    return refused(syscall(SYS_fanotify_init, 0x200 /* FAN_REPORT_FID */, O_RDONLY));
}

static int act_personality(int argc, char **argv) {
    return refused(personality(number(argc, argv, 1, READ_IMPLIES_EXEC)));
}

static int act_iopl(int argc, char **argv) {
    (void)argc, (void)argv;
    return refused(syscall(SYS_iopl, 3));
}

static int act_vhangup(int argc, char **argv) {
    (void)argc, (void)argv;
    return vhangup();
}

static int act_quotactl(int argc, char **argv) {
    (void)argc, (void)argv;
    /* Q_SYNC without a device needs no privilege where the call is not blocked. */
    return refused(syscall(SYS_quotactl, 0x80000100U /* QCMD(Q_SYNC, USRQUOTA) */, NULL, 0, NULL));
}

const struct act kernel_acts[] = {
    {"bpf", act_bpf},
    {"perf", act_perf},
    {"io-uring", act_io_uring},
    {"userfaultfd", act_userfaultfd},
    {"add-key", act_add_key},
    {"request-key", act_request_key},
    {"keyctl", act_keyctl},
    {"plant-key", act_plant_key},
    {"int80", act_int80},
    {"x32", act_x32},
    {"syscall", act_syscall},
    {"settime", act_settime},
    {"adjtime", act_adjtime},
    {"swapoff", act_swapoff},
    {"acct", act_acct},
    {"reboot", act_reboot},
    {"module", act_module},
    {"kexec", act_kexec},
    {"syslog", act_syslog},
    {"fanotify", act_fanotify},
    {"personality", act_personality},
    {"iopl", act_iopl},
    {"vhangup", act_vhangup},
    {"quotactl", act_quotactl},
    {NULL, NULL},
};
