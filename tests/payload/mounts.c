/* Acts on mounts and namespaces, by the old and by the new interfaces. */
#include "probe.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* <sys/mount.h> and <linux/mount.h> do not live together in every C library: raw calls. */
static int raw_mount(const char *src, const char *dst, const char *type, unsigned long flags) {
    return syscall(SYS_mount, src, dst, type, flags, NULL);
}

/* mount TYPE DIR [SOURCE] */
static int act_mount(int argc, char **argv) {
    const char *type = arg(argc, argv, 1, "tmpfs");
    return raw_mount(arg(argc, argv, 3, "none"), arg(argc, argv, 2, "/tmp"), type, 0);
}

/* bind FROM TO */
static int act_bind(int argc, char **argv) {
    return raw_mount(arg(argc, argv, 1, "/"), arg(argc, argv, 2, "/tmp"), NULL, MS_BIND | MS_REC);
}

/* remount DIR: makes a read-only mount writable. */
static int act_remount(int argc, char **argv) {
    return raw_mount(NULL, arg(argc, argv, 1, "/usr"), NULL, MS_REMOUNT | MS_BIND);
}

static int act_umount(int argc, char **argv) {
    return syscall(SYS_umount2, arg(argc, argv, 1, "/proc"), 2 /* MNT_DETACH */);
}

/* fsopen TYPE: and makes a mount of it. */
static int act_fsopen(int argc, char **argv) {
    int fs = syscall(SYS_fsopen, arg(argc, argv, 1, "tmpfs"), 0);
    if (fs < 0 || syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return -1;
    return syscall(SYS_fsmount, fs, 0, 0) < 0 ? -1 : 0;
}

/* open-tree DIR: a detached copy of a mount. */
static int act_open_tree(int argc, char **argv) {
    unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    return syscall(SYS_open_tree, AT_FDCWD, arg(argc, argv, 1, "/usr"), flags) < 0 ? -1 : 0;
}

/* move-mount FROM TO */
static int act_move_mount(int argc, char **argv) {
    return syscall(SYS_move_mount, AT_FDCWD, arg(argc, argv, 1, "/proc"), AT_FDCWD,
                   arg(argc, argv, 2, "/tmp"), 0);
}

/* mount-setattr DIR: clears the read-only attribute. */
static int act_mount_setattr(int argc, char **argv) {
    struct mount_attr attr = {.attr_clr = MOUNT_ATTR_RDONLY};
    return syscall(SYS_mount_setattr, AT_FDCWD, arg(argc, argv, 1, "/usr"), 0, &attr, sizeof attr);
}

static int act_pivot_root(int argc, char **argv) {
    if (chdir(arg(argc, argv, 1, "/tmp")) < 0)
        return -1;
    return syscall(SYS_pivot_root, ".", ".");
}

/* chroot DIR: the classic way out is a chroot below an open directory; entering is enough here. */
static int act_chroot(int argc, char **argv) { return chroot(arg(argc, argv, 1, "/tmp")); }

static unsigned long flag_named(const char *name) {
    static const struct {
        const char *name;
        unsigned long flag;
    } flags[] = {
        {"user", CLONE_NEWUSER}, {"mount", CLONE_NEWNS}, {"net", CLONE_NEWNET},
        {"pid", CLONE_NEWPID},   {"ipc", CLONE_NEWIPC},  {"uts", CLONE_NEWUTS},
        {"cgroup", CLONE_NEWCGROUP}, {"time", 0x80},
        {"user+mount", CLONE_NEWUSER | CLONE_NEWNS},
        {"user+net", CLONE_NEWUSER | CLONE_NEWNET},
    };
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (strcmp(flags[i].name, name) == 0)
            return flags[i].flag;
    return strtoul(name, NULL, 0);
}

static int act_unshare(int argc, char **argv) {
    return unshare(flag_named(arg(argc, argv, 1, "user")));
}

static int wait_zero(pid_t pid) {
    int status;
    if (pid < 0)
        return -1;
    waitpid(pid, &status, 0);
    return 0;
}

/* clone NAME: by the old call, with flags in the low 32 bits and rubbish above them. */
static int act_clone(int argc, char **argv) {
    unsigned long flags = flag_named(arg(argc, argv, 1, "user")) | SIGCHLD;
    if (number(argc, argv, 2, 0))
        flags |= 0x7000000000000000UL;
    pid_t pid = syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
    if (pid == 0)
        _exit(0);
    return wait_zero(pid);
}

static int act_clone3(int argc, char **argv) {
    struct clone_args args = {.flags = flag_named(arg(argc, argv, 1, "user")),
                              .exit_signal = SIGCHLD};
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        _exit(0);
    return wait_zero(pid);
}

/* setns PATH: joins the namespace behind a file of /proc/PID/ns. */
static int act_setns(int argc, char **argv) {
    int fd = open(arg(argc, argv, 1, "/proc/1/ns/mnt"), O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -1 : setns(fd, 0);
}

/* cgroupfs DIR: mounts any cgroup file system there, v2 first. */
static int act_cgroupfs(int argc, char **argv) {
    const char *dir = arg(argc, argv, 1, "/tmp");
    if (raw_mount("none", dir, "cgroup2", 0) == 0)
        return 0;
    return syscall(SYS_mount, "none", dir, "cgroup", 0, "none,name=probe");
}

/* release-agent DIR: cgroup v1 mount, then an agent that the kernel would run as root. */
static int act_release_agent(int argc, char **argv) {
    char path[300];
    const char *dir = arg(argc, argv, 1, "/tmp");
    if (syscall(SYS_mount, "none", dir, "cgroup", 0, "none,name=probeagent") < 0)
        return -1;
    snprintf(path, sizeof path, "%s/release_agent", dir);
    int fd = open(path, O_WRONLY);
    return fd < 0 || write(fd, "/bin/false", 10) < 0 ? -1 : 0;
}

const struct act mount_acts[] = {
    {"mount", act_mount},
    {"bind", act_bind},
    {"remount", act_remount},
    {"umount", act_umount},
    {"fsopen", act_fsopen},
    {"open-tree", act_open_tree},
    {"move-mount", act_move_mount},
    {"mount-setattr", act_mount_setattr},
    {"pivot-root", act_pivot_root},
    {"chroot", act_chroot},
    {"unshare", act_unshare},
    {"clone", act_clone},
    {"clone3", act_clone3},
    {"setns", act_setns},
    {"cgroupfs", act_cgroupfs},
    {"release-agent", act_release_agent},
    {NULL, NULL},
};
