/* Acts on files: host paths, /proc aliases, descriptors, links, handles, modes, device nodes. */
#include "probe.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

/* Keeps what was read printable and on one line. */
static void show(const char *bytes, ssize_t n) {
    size_t out = 0;
    for (ssize_t i = 0; i < n && out + 1 < sizeof detail; i++)
        detail[out++] = bytes[i] >= ' ' && bytes[i] < 127 ? bytes[i] : '.';
    detail[out] = 0;
}

/* read PATH: the first bytes of a file. An empty file counts as refused with ENODATA. */
static int act_read(int argc, char **argv) {
    char bytes[400];
    int fd = open(arg(argc, argv, 1, ""), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = read(fd, bytes, sizeof bytes);
    if (n < 0)
        return -1;
    if (n == 0) {
        errno = ENODATA;
        return -1;
    }
    show(bytes, n);
    return 0;
}

/* open PATH r|w|rw|path: opens without creating. */
static int act_open(int argc, char **argv) {
    const char *how = arg(argc, argv, 2, "r");
    int flags = strcmp(how, "w") == 0    ? O_WRONLY
                : strcmp(how, "rw") == 0 ? O_RDWR
                : strcmp(how, "path") == 0 ? O_PATH
                                           : O_RDONLY;
    return open(arg(argc, argv, 1, ""), flags | O_NONBLOCK | O_NOCTTY) < 0 ? -1 : 0;
}

/* write PATH TEXT: writes to an existing file without truncating it. */
static int act_write(int argc, char **argv) {
    const char *text = arg(argc, argv, 2, "x");
    int fd = open(arg(argc, argv, 1, ""), O_WRONLY | O_NONBLOCK | O_NOCTTY);
    return fd < 0 || write(fd, text, strlen(text)) < 0 ? -1 : 0;
}

/* create PATH: makes a file that must not exist. */
static int act_create(int argc, char **argv) {
    int fd = open(arg(argc, argv, 1, ""), O_WRONLY | O_CREAT | O_EXCL, 0644);
    return fd < 0 || write(fd, "escaped\n", 8) < 0 ? -1 : 0;
}

static int act_mkdir(int argc, char **argv) { return mkdir(arg(argc, argv, 1, ""), 0755); }
static int act_unlink(int argc, char **argv) { return unlink(arg(argc, argv, 1, "")); }
static int act_truncate(int argc, char **argv) { return truncate(arg(argc, argv, 1, ""), 0); }

static int act_rename(int argc, char **argv) {
    return rename(arg(argc, argv, 1, ""), arg(argc, argv, 2, ""));
}

static int act_link(int argc, char **argv) {
    return link(arg(argc, argv, 1, ""), arg(argc, argv, 2, ""));
}

/* chmod PATH MODE: and reads the bits back, for a kernel may drop them silently. */
static int act_chmod(int argc, char **argv) {
    mode_t mode = strtol(arg(argc, argv, 2, "755"), NULL, 8);
    struct stat st;
    if (chmod(arg(argc, argv, 1, ""), mode) < 0 || stat(argv[1], &st) < 0)
        return -1;
    snprintf(detail, sizeof detail, "%o", st.st_mode & 07777);
    if ((st.st_mode & 07777) != mode) {
        errno = EPERM;
        return -1;
    }
    return 0;
}

static int act_chown(int argc, char **argv) {
    return chown(arg(argc, argv, 1, ""), number(argc, argv, 2, 0), number(argc, argv, 3, 0));
}

/* mknod PATH b|c|p MAJOR MINOR */
static int act_mknod(int argc, char **argv) {
    char kind = *arg(argc, argv, 2, "c");
    mode_t type = kind == 'b' ? S_IFBLK : kind == 'p' ? S_IFIFO : S_IFCHR;
    dev_t dev = makedev(number(argc, argv, 3, 0), number(argc, argv, 4, 0));
    return mknod(arg(argc, argv, 1, ""), type | 0666, dev);
}

/* filecap PATH: gives a file cap_setuid,cap_sys_admin,… with a version 2 attribute. */
static int act_filecap(int argc, char **argv) {
    unsigned int caps[5] = {0x02000001, 0xffffffff, 0, 0x000001ff, 0};
    return setxattr(arg(argc, argv, 1, ""), "security.capability", caps, sizeof caps, 0);
}

/* xattr PATH NAME VALUE */
static int act_xattr(int argc, char **argv) {
    const char *value = arg(argc, argv, 3, "1");
    return setxattr(arg(argc, argv, 1, ""), arg(argc, argv, 2, ""), value, strlen(value), 0);
}

/* create-suid PATH: the bit comes with the creation instead of by chmod. */
static int act_create_suid(int argc, char **argv) {
    struct stat st;
    int fd = open(arg(argc, argv, 1, "suid"), O_WRONLY | O_CREAT | O_EXCL, 06755);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -1;
    errno = EPERM;
    return st.st_mode & 06000 ? 0 : -1;
}

/* mkdir-setgid PATH */
static int act_mkdir_setgid(int argc, char **argv) {
    struct stat st;
    const char *path = arg(argc, argv, 1, "setgid");
    if (mkdir(path, 02777) < 0 || chmod(path, 02777) < 0 || stat(path, &st) < 0)
        return -1;
    errno = EPERM;
    return st.st_mode & 02000 ? 0 : -1;
}

/* setflags PATH: makes a file immutable, which only root of the host can undo. */
static int act_setflags(int argc, char **argv) {
    int flags = FS_IMMUTABLE_FL | FS_APPEND_FL;
    int fd = open(arg(argc, argv, 1, "f"), O_RDONLY | O_CREAT, 0644);
    if (fd < 0)
        return -1;
    if (ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0)
        return -1;
    flags = 0;
    ioctl(fd, FS_IOC_SETFLAGS, &flags);
    return 0;
}

/* whiteout PATH: leaves the device file that hides a file of an overlay's lower layer. */
static int act_whiteout(int argc, char **argv) {
    const char *path = arg(argc, argv, 1, "w");
    close(open(path, O_WRONLY | O_CREAT, 0644));
    return renameat2(AT_FDCWD, path, AT_FDCWD, "w-moved", 4 /* RENAME_WHITEOUT */);
}

/* handle MOUNTPOINT: opens the root of the file system behind MOUNTPOINT by its handle. */
static int act_handle(int argc, char **argv) {
    union {
        struct file_handle h;
        char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } u;
    int mount_id, mount = open(arg(argc, argv, 1, "/usr"), O_RDONLY | O_DIRECTORY);
    memset(&u, 0, sizeof u);
    u.h.handle_bytes = MAX_HANDLE_SZ;
    if (mount < 0)
        return -1;
    if (name_to_handle_at(mount, "", &u.h, &mount_id, AT_EMPTY_PATH) < 0) {
        /* The refusal may come later: a guessed handle of inode 2 is as good on ext4. */
        unsigned int guess[2] = {2, 0};
        u.h.handle_bytes = 8;
        u.h.handle_type = 1;
        memcpy(u.h.f_handle, guess, sizeof guess);
    }
    return open_by_handle_at(mount, &u.h, O_RDONLY) < 0 ? -1 : 0;
}

/* fds: every open descriptor beyond 0, 1 and 2; succeeds if there is one. */
static int act_fds(int argc, char **argv) {
    (void)argc, (void)argv;
    size_t out = 0;
    int found = 0;
    for (int fd = 3; fd < 1024; fd++) {
        char link_path[64], target[128];
        if (fcntl(fd, F_GETFD) < 0)
            continue;
        snprintf(link_path, sizeof link_path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link_path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        found = 1;
        if (out < sizeof detail)
            out += snprintf(detail + out, sizeof detail - out, "%d=%s ", fd, target);
    }
    errno = EBADF;
    return found ? 0 : -1;
}

/* procs KIND TAIL: tries /proc/PID/KIND/TAIL of every process but our own; KIND root, cwd, fd/3. */
static int act_procs(int argc, char **argv) {
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    int last = ENOENT;
    while (proc && (entry = readdir(proc))) {
        char path[512];
        int pid = atoi(entry->d_name);
        if (pid <= 0 || pid == getpid() || pid == getppid())
            continue;
        snprintf(path, sizeof path, "/proc/%d/%s%s", pid, arg(argc, argv, 1, "root"),
                 arg(argc, argv, 2, ""));
        int fd = open(path, O_RDONLY | O_NONBLOCK);
        if (fd >= 0) {
            char bytes[200];
            ssize_t n = read(fd, bytes, sizeof bytes);
            snprintf(detail, sizeof detail, "%.200s", path);
            if (n > 0)
                show(bytes, n);
            return 0;
        }
        last = errno;
    }
    errno = last;
    return -1;
}

/* pids: how many processes are visible, and the largest id; never refused. */
static int act_pids(int argc, char **argv) {
    (void)argc, (void)argv;
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    int count = 0, largest = 0;
    while (proc && (entry = readdir(proc))) {
        int pid = atoi(entry->d_name);
        count += pid > 0;
        largest = pid > largest ? pid : largest;
    }
    snprintf(detail, sizeof detail, "%d largest %d", count, largest);
    return 0;
}

/* symbols: an address other than 0 in /proc/kallsyms. */
static int act_symbols(int argc, char **argv) {
    (void)argc, (void)argv;
    char line[256];
    FILE *f = fopen("/proc/kallsyms", "r");
    if (!f)
        return -1;
    while (fgets(line, sizeof line, f))
        if (strtoull(line, NULL, 16) != 0)
            return 0;
    errno = ENODATA;
    return -1;
}

/* self-exe: overwrites the program that process PID runs (the worker's, by way of init). */
static int act_exe(int argc, char **argv) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/exe", number(argc, argv, 1, 1));
    return open(path, number(argc, argv, 2, 0) ? O_WRONLY : O_RDONLY) < 0 ? -1 : 0;
}

/* suid PATH: runs `PATH` and expects it to print the effective uid; refused unless it is 0. */
static int act_suid(int argc, char **argv) {
    char command[512], line[64] = "";
    snprintf(command, sizeof command, "%s", arg(argc, argv, 1, "/bin/false"));
    FILE *out = popen(command, "r");
    if (out && fgets(line, sizeof line, out) && strncmp(line, "ok 0", 4) == 0)
        return 0;
    errno = EPERM;
    return -1;
}

/* euid: never refused. */
static int act_euid(int argc, char **argv) {
    (void)argc, (void)argv;
    snprintf(detail, sizeof detail, "%d", geteuid());
    return 0;
}

const struct act file_acts[] = {
    {"read", act_read},       {"open", act_open},         {"write", act_write},
    {"create", act_create},   {"mkdir", act_mkdir},       {"unlink", act_unlink},
    {"truncate", act_truncate}, {"rename", act_rename},   {"link", act_link},
    {"chmod", act_chmod},     {"chown", act_chown},       {"mknod", act_mknod},
    {"filecap", act_filecap}, {"xattr", act_xattr},       {"handle", act_handle},
    {"fds", act_fds},         {"procs", act_procs},       {"pids", act_pids},
    {"symbols", act_symbols}, {"exe", act_exe},           {"suid", act_suid},
    {"create-suid", act_create_suid}, {"mkdir-setgid", act_mkdir_setgid},
    {"setflags", act_setflags}, {"whiteout", act_whiteout},
    {"euid", act_euid},       {NULL, NULL},
};
