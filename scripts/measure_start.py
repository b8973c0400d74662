"""Measures the start of a jail against bubblewrap with the same mounts; run by scripts/bench.

All commands of a level are run in turn, in a new random order each round, so that whatever else
the machine does falls on all of them alike. Times are wall clock, from the call that starts the
process to its first byte of output or to its end.
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import stat
import statistics
import subprocess
import sys
import tempfile
import time

# An id that is nobody's, for level `rootless` when started by root.
ORDINARY_USER = 1000
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
PHASES = [
    ("claimed_us", "claimed"),
    ("cgroup_us", "cgroup"),
    ("prepared_us", "prepared"),
    ("cloned_us", "cloned"),
    ("tree_us", "tree"),
    ("built_us", "built"),
    ("ready_us", "ready"),
]
# include/uapi/asm-generic/unistd.h
SYS_OPEN_TREE, SYS_MOUNT_SETATTR = 428, 442
OPEN_TREE_CLONE, AT_FDCWD, AT_EMPTY_PATH, MOUNT_ATTR_RDONLY = 1, -100, 0x1000, 1


def run(argv, descriptors=()):
    """Seconds to the first byte (None without output) and to the end of one process."""
    reading, writing = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_CLOSE, writing)]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, ENVIRONMENT, file_actions=actions)
    os.close(writing)
    first = None
    while os.read(reading, 4096):
        first = first or time.perf_counter() - began
    _, status = os.waitpid(pid, 0)
    whole = time.perf_counter() - began
    os.close(reading)
    if status:
        raise SystemExit(f"error: {' '.join(argv[:12])} … ended with {os.waitstatus_to_exitcode(status)}")
    return first, whole


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def same_mounts(worker):
    """bubblewrap's options for what a jail has mounted, read from a jail; and the masks of /proc."""
    text = subprocess.run(
        [worker, "exec", "--", "cat", "/proc/self/mountinfo"],
        check=True, capture_output=True, text=True, env=ENVIRONMENT,
    ).stdout
    options, masks, empty = [], [], ["--perms", "0555", "--dir", "/run"]
    for line in text.splitlines():
        before, after = line.split(" - ")
        place, kind = before.split()[4], after.split()[0]
        if place == "/" or place.startswith(("/dev/", "/proc/sys")) and place != "/dev/shm":
            continue  # --dev makes its own; /proc/sys is one more mask below
        if place.startswith("/proc/"):
            masks += ["--ro-bind", "/run" if os.path.isdir(place) else "/dev/null", place]
        elif kind == "tmpfs":
            options += ["--tmpfs", place]
        elif kind == "proc":
            options = ["--proc", "/proc", "--dev", "/dev"] + options
        else:
            options += ["--ro-bind", place, place]
    for name in ["bin", "sbin", "lib", "lib64"]:
        if os.path.islink(f"/{name}"):
            options += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
    return empty + options + ["--chdir", "/workspace"], masks


def commands_of(worker, bwrap):
    mounts, masks = same_mounts(worker)
    jail = [worker, "exec", "--"]
    plain = [bwrap, "--unshare-all", *mounts, "--"]
    masked = [bwrap, "--unshare-all", *mounts, *masks, "--"]
    table = {}
    for what, command in [
        ("true", ["true"]),
        ("bash -c :", ["bash", "-c", ":"]),
        ("bash -c 'echo x'", ["bash", "-c", "echo x"]),
    ]:
        table[what] = {
            "worker exec": jail + command,
            "bwrap": plain + command,
            "bwrap, /proc masked": masked + command,
            "bare": [shutil.which(command[0]), *command[1:]],
        }
    return table


def measure(worker, bwrap, runs):
    """Everything about the level of the calling process, as plain data."""
    table = commands_of(worker, bwrap)
    work = [(what, who, argv) for what, row in table.items() for who, argv in row.items()]
    times = {what: {who: [] for who in row} for what, row in table.items()}
    for round_number in range(runs + 3):
        random.shuffle(work)
        for what, who, argv in work:
            first, whole = run(argv)
            if round_number >= 3:  # the first rounds fill caches
                times[what][who].append((first, whole))
    reports = []
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "report.json")
        for _ in range(max(10, runs // 2)):
            run([worker, "exec", "--report", path, "--", "true"])
            with open(path, encoding="utf-8") as file:
                report = json.load(file)
            reports.append({**report["timings"], "teardown_us": report["end"]["teardown_us"]})
    medians = {key: statistics.median(report[key] for report in reports) for key in reports[0]}
    return {"level": report["level"], "times": times, "medians": medians}


def measure_as_user(worker, bwrap, runs):
    """The same as an ordinary user, in a process of that user."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            os.setgroups([])
            os.setresgid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
            os.setresuid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
            with os.fdopen(writing, "w") as out:
                json.dump(measure(worker, bwrap, runs), out)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as source:
        text = source.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text) if status == 0 else None


def out_of_reach(worker, runs):
    """Milliseconds of `worker version` started three ways: plainly, from a read-only mount without
    a name (what the launcher does), from a sealed copy in memory."""
    libc = ctypes.CDLL(None, use_errno=True)

    def plain():
        run([worker, "version"])

    def mounted():
        tree = libc.syscall(SYS_OPEN_TREE, AT_FDCWD, worker.encode(), OPEN_TREE_CLONE)
        attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
        if tree < 0 or libc.syscall(SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, 32):
            raise OSError(ctypes.get_errno(), "cannot make a detached mount")
        run([f"/proc/self/fd/{tree}", "version"], [tree])
        os.close(tree)

    def sealed():
        import fcntl

        copy = os.memfd_create("worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(worker, "rb") as source:
            left = os.fstat(source.fileno()).st_size
            while left > 0:
                left -= os.sendfile(copy, source.fileno(), None, left)
        # F_ADD_SEALS of SEAL, SHRINK, GROW and WRITE
        fcntl.fcntl(copy, 1033, 0xF)
        run([f"/proc/self/fd/{copy}", "version"], [copy])
        os.close(copy)

    ways = {"plain exec": plain, "read-only detached mount": mounted, "sealed memfd": sealed}
    if os.geteuid() != 0:
        del ways["read-only detached mount"]  # needs a user namespace, which would be measured too
    times = {way: [] for way in ways}
    for round_number in range(runs + 3):
        order = list(ways)
        random.shuffle(order)
        for way in order:
            began = time.perf_counter()
            ways[way]()
            if round_number >= 3:
                times[way].append(time.perf_counter() - began)
    return times


def show_level(result):
    print(f"\nlevel {result['level']}")
    print(f"  {'milliseconds':<42} {'p50':>8} {'p90':>8} {'p99':>8}   of bwrap's p50, p99")
    for what, row in result["times"].items():
        moments = [(1, "whole process")]
        if all(first is not None for runs in row.values() for first, _ in runs):
            moments.insert(0, (0, "first byte"))
        for index, moment in moments:
            base = [times[index] for times in row["bwrap"]]
            print(f"  {what}, {moment}")
            for who, runs in row.items():
                values = [times[index] for times in runs]
                shown = [percentile(values, percent) for percent in (50, 90, 99)]
                ratios = [shown[0] / percentile(base, 50), shown[2] / percentile(base, 99)]
                cells = " ".join(f"{value * 1e3:8.2f}" for value in shown)
                tail = "" if who == "bwrap" else f"   {ratios[0]:.2f} ×, {ratios[1]:.2f} ×"
                print(f"    {who:<40} {cells}{tail}")
    medians = result["medians"]
    before, parts = 0, []
    for key, name in sorted(PHASES, key=lambda phase: medians[phase[0]]):
        parts.append(f"{name} {medians[key]:.0f}")
        before = medians[key]
    print(f"  launcher, µs from request to the end of each phase (medians): {', '.join(parts)};")
    print(f"  teardown {medians['teardown_us']:.0f} µs; request to command {before:.0f} µs")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", required=True)
    parser.add_argument("--runs", type=int, default=100)
    arguments = parser.parse_args()
    bwrap = shutil.which("bwrap")
    scratch = tempfile.TemporaryDirectory()
    os.chmod(scratch.name, 0o755)
    # At a path that any user may execute, whatever the clone's permissions are.
    worker = shutil.copy(arguments.worker, os.path.join(scratch.name, "worker"))
    os.chmod(worker, stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)

    kernel, size = os.uname(), os.path.getsize(worker) / 2**20
    version = subprocess.run([bwrap, "--version"], capture_output=True, text=True).stdout.strip()
    print(f"Linux {kernel.release} {kernel.machine}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
          f"{version}; worker of {size:.1f} MiB; {arguments.runs} runs of each, interleaved")
    if os.getloadavg()[0] > os.cpu_count() / 2:
        print("warning: this machine is busy with something else; repeat when it is not", file=sys.stderr)
    print("bwrap --unshare-all has the jail's mounts, without masks in /proc unless stated; it has no "
          "landlock, no system call filter, no cgroup, no limits")

    show_level(measure(worker, bwrap, arguments.runs))
    if os.geteuid() == 0:
        result = measure_as_user(worker, bwrap, arguments.runs)
        if result:
            show_level(result)
        else:
            print(f"\nlevel rootless: not measured, user {ORDINARY_USER} cannot make jails here")

    print("\nkeeping the binary out of reach of jails: `worker version`, milliseconds p50, p90, p99")
    for way, values in out_of_reach(worker, arguments.runs).items():
        cells = " ".join(f"{percentile(values, percent) * 1e3:8.2f}" for percent in (50, 90, 99))
        print(f"    {way:<40} {cells}")


if __name__ == "__main__":
    sys.exit(main())
