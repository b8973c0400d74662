/*
 * The hostile payload: `probe ACT [ARGS]` makes one attempt, prints one line and exits.
 *
 *   ok [DETAIL]    exit 0: the act succeeded
 *   errno NAME     exit 1: the kernel refused it with this error
 *
 * `probe each "ACT ARGS" …` makes many attempts, each in a child of its own, with one line
 * `ACT ARGS: OUTCOME` per attempt, where OUTCOME may also be `signal NUMBER`.
 *
 * One static program, so that it runs in any jail, on the bare host and in bare namespaces alike.
 */
#include "probe.h"

#include <signal.h>
#include <sys/wait.h>

char detail[512];

static const struct act *const tables[] = {file_acts, mount_acts, process_acts,
                                           kernel_acts, net_acts, limit_acts, session_acts};

const char *arg(int argc, char **argv, int i, const char *fallback) {
    return i < argc ? argv[i] : fallback;
}

long number(int argc, char **argv, int i, long fallback) {
    return i < argc ? strtol(argv[i], NULL, 0) : fallback;
}

static act_fn find(const char *name) {
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const struct act *a = tables[t]; a->name; a++)
            if (strcmp(a->name, name) == 0)
                return a->run;
    return NULL;
}

static int attempt(int argc, char **argv) {
    act_fn run = find(argv[0]);
    if (!run) {
        printf("unknown act %s\n", argv[0]);
        return 64;
    }
    detail[0] = 0;
    errno = 0;
    if (run(argc, argv) == 0) {
        printf(detail[0] ? "ok %s\n" : "ok\n", detail);
        return 0;
    }
    const char *name = strerrorname_np(errno);
    printf("errno %s\n", name ? name : "0");
    return 1;
}

static void each(char *line) {
    char *argv[16];
    int argc = 0, status = 0;
    printf("%s: ", line);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        for (char *word = strtok(line, " "); word && argc < 16; word = strtok(NULL, " "))
            argv[argc++] = word;
        int rc = attempt(argc, argv);
        fflush(stdout);
        _exit(rc);
    }
    if (pid < 0) {
        printf("errno %s\n", strerrorname_np(errno));
        return;
    }
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status))
        printf("signal %d\n", WTERMSIG(status));
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: probe ACT [ARGS] | each LINE… | supervise REPORT SECONDS CMD…\n");
        return 64;
    }
    if (strcmp(argv[1], "supervise") == 0)
        return supervise(argc - 1, argv + 1);
    if (strcmp(argv[1], "each") == 0) {
        for (int i = 2; i < argc; i++)
            each(argv[i]);
        return 0;
    }
    return attempt(argc - 1, argv + 1);
}
