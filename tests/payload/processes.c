/* Acts on other processes, terminals and identities. */
#include "probe.h"

#include <fcntl.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

static int act_kill(int argc, char **argv) {
    return kill(number(argc, argv, 1, 1), number(argc, argv, 2, SIGKILL));
}

/* pidfd-kill PID: the same by descriptor. */
static int act_pidfd_kill(int argc, char **argv) {
    int fd = syscall(SYS_pidfd_open, (pid_t)number(argc, argv, 1, 1), 0);
    return fd < 0 ? -1 : syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
}

static int act_ptrace(int argc, char **argv) {
    pid_t pid = number(argc, argv, 1, 1);
    int how = strcmp(arg(argc, argv, 2, "seize"), "attach") == 0 ? PTRACE_ATTACH : PTRACE_SEIZE;
    if (ptrace(how, pid, 0, 0) < 0)
        return -1;
    /* Leave the victim as it was. */
    if (how == PTRACE_ATTACH)
        waitpid(pid, NULL, __WALL);
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return 0;
}

/* vm-read PID: eight bytes at an address that the victim is sure to have (its own stack top). */
static int act_vm_read(int argc, char **argv) {
    char buffer[8], line[256], path[64];
    unsigned long address = 0x400000;
    snprintf(path, sizeof path, "/proc/%ld/maps", number(argc, argv, 1, 1));
    FILE *maps = fopen(path, "r");
    if (maps && fgets(line, sizeof line, maps))
        address = strtoul(line, NULL, 16);
    struct iovec local = {buffer, sizeof buffer}, remote = {(void *)address, sizeof buffer};
    return process_vm_readv(number(argc, argv, 1, 1), &local, 1, &remote, 1, 0) < 0 ? -1 : 0;
}

static int act_vm_write(int argc, char **argv) {
    char buffer[1] = {0};
    struct iovec local = {buffer, 1}, remote = {(void *)0x400000, 1};
    return process_vm_writev(number(argc, argv, 1, 1), &local, 1, &remote, 1, 0) < 0 ? -1 : 0;
}

static int act_mem(int argc, char **argv) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/mem", number(argc, argv, 1, 1));
    return open(path, O_RDWR) < 0 ? -1 : 0;
}

/* pidfd-getfd PID FD: a copy of another process's descriptor. */
static int act_pidfd_getfd(int argc, char **argv) {
    int pidfd = syscall(SYS_pidfd_open, (pid_t)number(argc, argv, 1, 1), 0);
    if (pidfd < 0)
        return -1;
    return syscall(SYS_pidfd_getfd, pidfd, (int)number(argc, argv, 2, 0), 0) < 0 ? -1 : 0;
}

static int act_kcmp(int argc, char **argv) {
    return syscall(SYS_kcmp, getpid(), (pid_t)number(argc, argv, 1, 1), 0, 0, 0) < 0 ? -1 : 0;
}

#if defined(__x86_64__)
/* rewrite NR ARG: as the tracer of a child, turns its getppid into another call on the way in. */
static int act_rewrite(int argc, char **argv) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        long rc = syscall(SYS_getppid);
        _exit(rc < 0 ? errno : 0);
    }
    waitpid(child, &status, 0);
    for (int stops = 0; stops < 100; stops++) {
        struct user_regs_struct regs;
        if (ptrace(PTRACE_SYSCALL, child, 0, 0) < 0)
            break;
        waitpid(child, &status, 0);
        if (WIFEXITED(status) || WIFSIGNALED(status))
            break;
        ptrace(PTRACE_GETREGS, child, 0, &regs);
        if (regs.orig_rax == SYS_getppid) {
            regs.orig_rax = number(argc, argv, 1, SYS_unshare);
            regs.rdi = number(argc, argv, 2, CLONE_NEWUSER);
            ptrace(PTRACE_SETREGS, child, 0, &regs);
            ptrace(PTRACE_CONT, child, 0, 0);
            waitpid(child, &status, 0);
            break;
        }
    }
    if (WIFSIGNALED(status)) {
        errno = ESRCH;
        return -1;
    }
    errno = WEXITSTATUS(status);
    return errno ? -1 : 0;
}
#else
static int act_rewrite(int argc, char **argv) {
    (void)argc, (void)argv;
    errno = EPERM;
    return -1;
}
#endif

static int act_setuid(int argc, char **argv) {
    uid_t id = number(argc, argv, 1, 0);
    return setresuid(id, id, id);
}

static int act_setgid(int argc, char **argv) {
    gid_t id = number(argc, argv, 1, 0);
    return setresgid(id, id, id);
}

/* limit NAME: raises the hard limit by one, which needs CAP_SYS_RESOURCE on the host. */
static int act_raise(int argc, char **argv) {
    struct rlimit limit;
    int which = strcmp(arg(argc, argv, 1, "nofile"), "core") == 0 ? RLIMIT_CORE : RLIMIT_NOFILE;
    if (getrlimit(which, &limit) < 0)
        return -1;
    limit.rlim_max += 1;
    return setrlimit(which, &limit);
}

static int act_nice(int argc, char **argv) {
    return setpriority(PRIO_PROCESS, 0, number(argc, argv, 1, -20));
}

static int act_realtime(int argc, char **argv) {
    (void)argc, (void)argv;
    struct sched_param param = {.sched_priority = 50};
    return sched_setscheduler(0, SCHED_FIFO, &param);
}

/* oom-shield: makes this process the last one the kernel kills. */
static int act_oom_shield(int argc, char **argv) {
    (void)argc, (void)argv;
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    return fd < 0 || write(fd, "-1000", 5) < 0 ? -1 : 0;
}

/* caps: the effective set; succeeds if it is not empty. `caps full` demands all of them. */
static int act_caps(int argc, char **argv) {
    char line[256];
    unsigned long long set = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "CapEff:", 7) == 0)
            set = strtoull(line + 7, NULL, 16);
    snprintf(detail, sizeof detail, "%llx", set);
    errno = EPERM;
    if (strcmp(arg(argc, argv, 1, ""), "full") == 0)
        return (set & 0x1ffffffffffULL) == 0x1ffffffffffULL ? 0 : -1;
    return set ? 0 : -1;
}

/* no-new-privs: succeeds if it is off. */
static int act_new_privs(int argc, char **argv) {
    (void)argc, (void)argv;
    errno = EPERM;
    return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 ? 0 : -1;
}

/* The terminal acts want a terminal: ours if there is one, else a fresh one. */
static int terminal(void) {
    int master, slave;
    if (isatty(0))
        return 0;
    int fd = open("/dev/tty", O_RDWR | O_NOCTTY);
    if (fd >= 0)
        return fd;
    if (openpty(&master, &slave, NULL, NULL, NULL) < 0)
        return -1;
    if (setsid() >= 0)
        ioctl(slave, TIOCSCTTY, 0);
    return slave;
}

/* tiocsti: types into the terminal. With HIGH, rubbish is put into the upper half of the call. */
static int act_tiocsti(int argc, char **argv) {
    unsigned long request = TIOCSTI;
    if (number(argc, argv, 1, 0))
        request |= 0x1100000000UL;
    int fd = terminal();
    return fd < 0 ? -1 : (int)syscall(SYS_ioctl, fd, request, "#");
}

static int act_tioclinux(int argc, char **argv) {
    char sub = number(argc, argv, 1, 6);
    int fd = terminal();
    return fd < 0 ? -1 : ioctl(fd, TIOCLINUX, &sub);
}

static int act_tiocsetd(int argc, char **argv) {
    int discipline = number(argc, argv, 1, 0), fd = terminal();
    return fd < 0 ? -1 : ioctl(fd, TIOCSETD, &discipline);
}

/* steal-tty: takes the caller's terminal as the controlling one. */
static int act_tty(int argc, char **argv) {
    (void)argc, (void)argv;
    return open("/dev/tty", O_RDWR | O_NOCTTY) < 0 ? -1 : 0;
}

/* daemon FILE: leaves a process behind that ignores everything it may and keeps writing to FILE. */
static int act_daemon(int argc, char **argv) {
    pid_t pid = fork();
    if (pid != 0) {
        waitpid(pid, NULL, 0);
        return 0;
    }
    setsid();
    if (fork() != 0)
        _exit(0);
    for (int sig = 1; sig < 32; sig++)
        signal(sig, SIG_IGN);
    prctl(PR_SET_NAME, "e2e-daemon");
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    for (int i = 0; i < 6000; i++) {
        FILE *f = fopen(arg(argc, argv, 1, "/tmp/beat"), "a");
        if (f) {
            fputs("beat\n", f);
            fclose(f);
        }
        usleep(10000);
    }
    _exit(0);
}

const struct act process_acts[] = {
    {"kill", act_kill},         {"pidfd-kill", act_pidfd_kill}, {"ptrace", act_ptrace},
    {"vm-read", act_vm_read},   {"vm-write", act_vm_write},     {"mem", act_mem},
    {"pidfd-getfd", act_pidfd_getfd}, {"kcmp", act_kcmp},       {"setuid", act_setuid},
    {"setgid", act_setgid},     {"raise", act_raise},           {"nice", act_nice},
    {"realtime", act_realtime}, {"oom-shield", act_oom_shield}, {"caps", act_caps},
    {"new-privs", act_new_privs}, {"tiocsti", act_tiocsti},     {"tioclinux", act_tioclinux},
    {"tiocsetd", act_tiocsetd}, {"tty", act_tty},               {"daemon", act_daemon},
    {"rewrite", act_rewrite},
    {NULL, NULL},
};
