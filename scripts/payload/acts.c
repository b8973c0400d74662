// Run by scripts/demo inside a jail: tries what no jail may allow, and says how each act ended.
//
// One line per act: the act, the layer that must refuse it, the error it must give, the error it
// gave. The exit status is the number of acts that were not refused as they must be.
//
// Usage: acts HOST_PID, the id of a process on the host.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static int failures;

static const char *name(int error)
{
    const char *text = strerrorname_np(error);
    return error == 0 ? "allowed" : text ? text : "?";
}

static void act(const char *what, const char *layer, int expected, long result)
{
    int got = result == -1 ? errno : 0;
    failures += got != expected;
    printf("%s\t%s\t%s\t%s\n", what, layer, name(expected), name(got));
    errno = 0;
}

// Process ids in /proc that are neither this process nor the one that started it.
static long count_foreign_processes(void)
{
    long count = 0;
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        int pid = atoi(entry->d_name);
        count += pid > 0 && pid != getpid() && pid != getppid();
    }
    return count;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 100;
    int host_pid = atoi(argv[1]);

    act("read the host's password hashes (/etc/shadow)", "mount-namespace", ENOENT,
        open("/etc/shadow", O_RDONLY));
    act("replace a program (/usr/bin/ls)", "mount-namespace", EROFS,
        open("/usr/bin/ls", O_WRONLY | O_TRUNC));
    act("read the kernel's memory (/dev/mem)", "mount-namespace", ENOENT, open("/dev/mem", O_RDONLY));
    act("talk to the host's services (/run/systemd)", "mount-namespace", ENOENT,
        access("/run/systemd", F_OK));
    act("read a file that no rule grants (/.canary)", "landlock", EACCES,
        open("/.canary", O_RDONLY));

    errno = EPERM;
    long foreign = count_foreign_processes();
    errno = ESRCH;
    act("see processes of the host in /proc", "pid-namespace", ESRCH, foreign == 0 ? -1 : 0);
    act("kill a process of the host", "pid-namespace", ESRCH, kill(host_pid, SIGKILL));

    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(443) };
    address.sin_addr.s_addr = htonl(0x01010101);
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    act("connect to 192.0.2.1:443", "net-namespace", ENETUNREACH,
        connect(connection, (struct sockaddr *)&address, sizeof address));

    act("mount a file system", "seccomp", EPERM, mount("none", "/tmp", "tmpfs", 0, NULL));
    act("make a user namespace", "seccomp", EPERM, unshare(CLONE_NEWUSER));
    act("make a disk device (mknod)", "seccomp", EPERM,
        mknod("/tmp/disk", S_IFBLK | 0600, makedev(8, 0)));
    int file = open("/tmp/file", O_CREAT | O_WRONLY, 0700);
    act("make a setuid program", "seccomp", EPERM, fchmod(file, 04755));
    act("load code into the kernel (bpf)", "seccomp", EPERM,
        syscall(SYS_bpf, BPF_MAP_CREATE, NULL, 0));
    act("read a key of the host (keyctl)", "seccomp", ENOSYS, syscall(SYS_keyctl, 0, 0, 0));
    act("pass the filter through io_uring", "seccomp", ENOSYS,
        syscall(SYS_io_uring_setup, 1, NULL));
    act("open a packet socket", "seccomp", EAFNOSUPPORT, socket(AF_PACKET, SOCK_RAW, 0));
    act("become root", "user-namespace", EINVAL, setuid(0));
    return failures;
}
