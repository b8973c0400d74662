/*
 * `probe supervise REPORT SECONDS GRACE UID CMD…`: runs CMD below a subreaper of its own, so that
 * every process which outlives CMD, however it detached itself, ends up here and is named. The
 * pipes on 0, 1 and 2 are given to UID, as if that user had made them.
 *
 * REPORT gets `pid N` at the start, then `exit N`, `signal N` or `timeout`, then one line
 * `leftover PID NAME` for every process that was still there GRACE seconds after CMD ended.
 * Left-over processes are killed. They are our own descendants, nothing else is touched.
 */
#include "probe.h"

#include <dirent.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void nap(void) {
    struct timespec t = {0, 5000000};
    nanosleep(&t, NULL);
}

/* Names, and kills if asked to, every child of this process. */
static int children(FILE *report, int kill_them) {
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    int found = 0;
    while (proc && (entry = readdir(proc))) {
        char path[300], name[64] = "?";
        int pid = atoi(entry->d_name), parent = 0;
        char state = '?';
        if (pid <= 0)
            continue;
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        FILE *stat = fopen(path, "r");
        if (!stat)
            continue;
        if (fscanf(stat, "%*d (%63[^)]) %c %d", name, &state, &parent) == 3 &&
            parent == getpid() && state != 'Z') {
            found++;
            if (report)
                fprintf(report, "leftover %d %s %c\n", pid, name, state);
            if (kill_them)
                kill(pid, SIGKILL);
        }
        fclose(stat);
    }
    if (proc)
        closedir(proc);
    return found;
}

/* Collects children until there are none or `seconds` have passed. */
static int reap_all(double seconds) {
    for (double end = now() + seconds; now() < end; nap()) {
        pid_t pid;
        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
            ;
        if (pid < 0 && errno == ECHILD)
            return 0;
    }
    return -1;
}

static volatile sig_atomic_t stopped;

static void stop(int sig) {
    (void)sig;
    stopped = 1;
}

int supervise(int argc, char **argv) {
    if (argc < 6)
        return 64;
    FILE *report = fopen(argv[1], "we");
    if (!report)
        return 64;
    double limit = atof(argv[2]), grace = atof(argv[3]), started = now();
    /* So that the level's user can open /dev/stdout. Pipes only: anything else may be the host's. */
    for (int fd = 0; fd < 3; fd++) {
        struct stat at;
        if (fstat(fd, &at) < 0 || !S_ISFIFO(at.st_mode))
            continue;
        if (fchown(fd, atoi(argv[4]), -1) < 0 && errno != EPERM)
            return 64;
    }
    /* A signal to the payload's process group, should it be ours, must not reach the test. */
    setsid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    /* A test that fails in the middle ends its thread, and with it this run. */
    signal(SIGTERM, stop);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGPIPE, SIG_IGN);
    pid_t main_pid = fork();
    if (main_pid == 0) {
        signal(SIGPIPE, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        execvp(argv[5], argv + 5);
        _exit(127);
    }
    fprintf(report, "pid %d\n", main_pid);
    fflush(report);
    int status = 0, timed_out = 0;
    for (;;) {
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid == main_pid)
            break;
        if (pid != 0)
            continue;
        if (stopped && now() - started < limit)
            limit = now() - started;
        if (!timed_out && (stopped || now() - started > limit)) {
            timed_out = 1;
            kill(main_pid, SIGCONT);
            kill(main_pid, SIGTERM);
        }
        if (timed_out && now() - started > limit + 5)
            kill(main_pid, SIGKILL);
        nap();
    }
    if (timed_out)
        fprintf(report, "timeout\n");
    else if (WIFSIGNALED(status))
        fprintf(report, "signal %d\n", WTERMSIG(status));
    else
        fprintf(report, "exit %d\n", WEXITSTATUS(status));
    fflush(report);
    if (reap_all(grace) != 0) {
        children(report, 1);
        while (reap_all(0.2) != 0 && now() - started < limit + 20)
            children(NULL, 1);
    }
    fclose(report);
    if (timed_out)
        return 199;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
