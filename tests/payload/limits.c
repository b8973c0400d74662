/* Acts that use things up. Each stops at a bound of its own, so that a missing limit hurts nobody. */
#include "probe.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* forks N: keeps N sleeping children; refused at the first fork that fails. */
static int act_forks(int argc, char **argv) {
    long want = number(argc, argv, 1, 2000), made = 0;
    int error = 0;
    for (; made < want; made++) {
        pid_t pid = fork();
        if (pid == 0) {
            pause();
            _exit(0);
        }
        if (pid < 0) {
            error = errno;
            break;
        }
    }
    snprintf(detail, sizeof detail, "%ld", made);
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    fprintf(stderr, "forks: %ld\n", made);
    errno = error;
    return error ? -1 : 0;
}

/* bomb SECONDS: every process doubles itself for as long as it may. */
static int act_bomb(int argc, char **argv) {
    double end = now() + number(argc, argv, 1, 1);
    while (now() < end)
        if (fork() < 0)
            usleep(1000);
    return 0;
}

/* zombies N: children that end and are not collected. */
static int act_zombies(int argc, char **argv) {
    long want = number(argc, argv, 1, 2000);
    for (long i = 0; i < want; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        if (pid < 0)
            return -1;
    }
    return 0;
}

static void *sleeper(void *unused) {
    (void)unused;
    pause();
    return NULL;
}

static int act_threads(int argc, char **argv) {
    long want = number(argc, argv, 1, 2000);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (long i = 0; i < want; i++) {
        pthread_t t;
        int error = pthread_create(&t, &small, sleeper, NULL);
        if (error) {
            errno = error;
            return -1;
        }
    }
    return 0;
}

static int act_descriptors(int argc, char **argv) {
    long want = number(argc, argv, 1, 20000);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (long i = 0; i < want; i++)
        if (open("/dev/null", O_RDONLY) < 0)
            return -1;
    return 0;
}

/* ptys N SECONDS: opens that many terminals and holds them. */
static int act_ptys(int argc, char **argv) {
    long want = number(argc, argv, 1, 4096), made = 0;
    int error = 0;
    for (; made < want; made++)
        if (open("/dev/ptmx", O_RDWR | O_NOCTTY) < 0) {
            error = errno;
            break;
        }
    printf("%ld terminals\n", made);
    fflush(stdout);
    sleep(number(argc, argv, 2, 0));
    errno = error;
    return error ? -1 : 0;
}

/* memory MIB: touches that much. */
static int act_memory(int argc, char **argv) {
    size_t size = (size_t)number(argc, argv, 1, 512) << 20;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return -1;
    for (size_t i = 0; i < size; i += 4096)
        p[i] = 1;
    return 0;
}

/* fill FILE MIB: writes one file. */
static int act_fill(int argc, char **argv) {
    static char block[1 << 20];
    long want = number(argc, argv, 2, 4096);
    memset(block, 'x', sizeof block);
    int fd = open(arg(argc, argv, 1, "/tmp/fill"), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        return -1;
    for (long i = 0; i < want; i++)
        if (write(fd, block, sizeof block) < 0)
            return -1;
    return close(fd);
}

/* inodes DIR N: empty files. */
static int act_inodes(int argc, char **argv) {
    char path[300];
    long want = number(argc, argv, 2, 200000);
    for (long i = 0; i < want; i++) {
        snprintf(path, sizeof path, "%s/i%ld", arg(argc, argv, 1, "/tmp"), i);
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
        if (fd < 0)
            return -1;
        close(fd);
    }
    return 0;
}

/* spin SECONDS THREADS: by the clock; says how much CPU time that gave, in milliseconds. */
static double spin_end;
static void *spinner(void *unused) {
    (void)unused;
    while (now() < spin_end)
        ;
    return NULL;
}

static int act_spin(int argc, char **argv) {
    pthread_t t[16];
    long threads = number(argc, argv, 2, 2);
    struct rusage usage;
    spin_end = now() + number(argc, argv, 1, 1);
    for (long i = 0; i < threads && i < 16; i++)
        pthread_create(&t[i], NULL, spinner, NULL);
    for (long i = 0; i < threads && i < 16; i++)
        pthread_join(t[i], NULL);
    getrusage(RUSAGE_SELF, &usage);
    snprintf(detail, sizeof detail, "%ld",
             (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
                 (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000);
    return 0;
}

/* crash: dies of SIGSEGV with the largest core limit it can get. */
static int act_crash(int argc, char **argv) {
    (void)argc, (void)argv;
    struct rlimit limit;
    getrlimit(RLIMIT_CORE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_CORE, &limit);
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
    return -1;
}

/* secret-env NAME: whether the variable is set here. */
static int act_env(int argc, char **argv) {
    const char *value = getenv(arg(argc, argv, 1, "PATH"));
    snprintf(detail, sizeof detail, "%.200s", value ? value : "");
    errno = ENOENT;
    return value ? 0 : -1;
}

/* lock-memory MIB */
static int act_lock_memory(int argc, char **argv) {
    size_t size = (size_t)number(argc, argv, 1, 64) << 20;
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? -1 : mlock(p, size);
}

const struct act limit_acts[] = {
    {"forks", act_forks},     {"bomb", act_bomb},       {"zombies", act_zombies},
    {"threads", act_threads}, {"descriptors", act_descriptors}, {"memory", act_memory},
    {"fill", act_fill},       {"inodes", act_inodes},   {"spin", act_spin},
    {"crash", act_crash},     {"env", act_env}, {"ptys", act_ptys},
            {"lock-memory", act_lock_memory},
    {NULL, NULL},
};
