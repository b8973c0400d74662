/* Acts on the processes that serve a session, by id: each also works on a process of one's own. */
#include "probe.h"

#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>

/* prlimit PID: a limit of 0 processes, which what it starts would inherit. */
static int act_prlimit(int argc, char **argv) {
    struct rlimit limit = {0, 0};
    return prlimit(number(argc, argv, 1, 1), RLIMIT_NPROC, &limit, NULL);
}

static int act_affinity(int argc, char **argv) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) < 0)
        return -1;
    return sched_setaffinity(number(argc, argv, 1, 1), sizeof set, &set);
}

static int act_idle(int argc, char **argv) {
    struct sched_param none = {0};
    return sched_setscheduler(number(argc, argv, 1, 1), SCHED_IDLE, &none);
}

static int act_param(int argc, char **argv) {
    struct sched_param none = {0};
    return sched_setparam(number(argc, argv, 1, 1), &none);
}

static int act_attr(int argc, char **argv) {
    unsigned attr[12] = {48, SCHED_IDLE};
    return syscall(SYS_sched_setattr, (pid_t)number(argc, argv, 1, 1), attr, 0);
}

/* priority WHICH WHO */
static int act_priority(int argc, char **argv) {
    return setpriority(number(argc, argv, 1, 0), number(argc, argv, 2, 1), 19);
}

/* ioprio WHICH WHO: the idle class. */
static int act_ioprio(int argc, char **argv) {
    return syscall(SYS_ioprio_set, (int)number(argc, argv, 1, 1), (int)number(argc, argv, 2, 1),
                   3 << 13);
}

/* madvise PID: throws out a page of another process. */
static int act_madvise(int argc, char **argv) {
    int fd = syscall(SYS_pidfd_open, (pid_t)number(argc, argv, 1, 1), 0);
    struct iovec page = {(void *)0x400000, 4096};
    return fd < 0 || syscall(SYS_process_madvise, fd, &page, 1, 20, 0) < 0 ? -1 : 0;
}

static int act_robust(int argc, char **argv) {
    void *head;
    size_t length;
    return syscall(SYS_get_robust_list, (pid_t)number(argc, argv, 1, 1), &head, &length);
}

/* flood PID SIGNAL COUNT: succeeds if the process is still there afterwards. */
static int act_flood(int argc, char **argv) {
    pid_t pid = number(argc, argv, 1, 1);
    for (long i = 0; i < number(argc, argv, 3, 1000); i++) {
        union sigval value = {.sival_int = (int)i};
        if (sigqueue(pid, number(argc, argv, 2, SIGCHLD), value) < 0 && errno != EAGAIN)
            return -1;
    }
    return kill(pid, 0);
}

/* reach: every process id that answers. */
static int act_reach(int argc, char **argv) {
    long last = number(argc, argv, 1, 70000);
    size_t length = 0;
    for (long pid = 1; pid < last; pid++)
        if (kill(pid, 0) == 0 || errno == EPERM)
            length += snprintf(detail + length, sizeof detail - length, "%ld ", pid);
    return 0;
}

const struct act session_acts[] = {
    {"prlimit", act_prlimit}, {"affinity", act_affinity}, {"idle", act_idle},
    {"param", act_param},     {"attr", act_attr},         {"priority", act_priority},
    {"ioprio", act_ioprio},   {"madvise", act_madvise},   {"robust", act_robust},
    {"flood", act_flood},     {"reach", act_reach},
    {NULL, NULL},
};
