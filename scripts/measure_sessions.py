"""Measures sessions against the official Python worker, which has no jail; run by scripts/bench.

Both serve the same scripted sessions of `worker devserver`, in turn, each in a process of its own.
Latencies are the server's: from the event written to the result received. CPU is user and system
time of the worker and of everything below it. Memory is the sum of PSS over the same processes.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
OURS, THEIRS = "worker poll --jail", "official Python worker"
PATIENCE = 120
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A development server."""

    def __init__(self, worker, directory):
        self.directory = directory
        self.file = lambda name: os.path.join(directory, name)
        with open(self.file("plane.log"), "w") as log:
            self.process = subprocess.Popen(
                [worker, "devserver", "--env-file", self.file("env")],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            )
        wait_for(lambda: os.path.exists(self.file("env")), "the development server")
        with open(self.file("env"), encoding="utf-8") as lines:
            self.variables = dict(line.strip().split("=", 1) for line in lines)

    def dev(self, path, body=None):
        url = f"{self.variables['ANTHROPIC_BASE_URL']}/dev/{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def push(self, **script):
        return self.dev("sessions", script)["ids"]

    def report(self):
        return self.dev("report")

    def stop(self):
        end(self.process)


def wait_for(holds, what, every=0.02):
    limit = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > limit:
            raise SystemExit(f"error: {what} took longer than {PATIENCE} s")
        time.sleep(every)


def end(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def serving(kind, arguments, sessions=1):
    """A server and a worker of one kind, which has polled at least once."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        server = Server(arguments.worker, directory)
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": directory,
            **{name: value for name, value in os.environ.items() if name == "XDG_RUNTIME_DIR"},
            **server.variables,
        }
        if kind == OURS:
            command = [
                arguments.worker, "poll", "--jail", "--max-sessions", str(sessions), "--max-idle", "2s",
                "--log-level", "warn", "--state-dir", server.file("state"),
                "--audit-file", server.file("audit.jsonl"),
            ]
        else:
            os.mkdir(server.file("work"))
            command = [arguments.python, os.path.join(HERE, "../tests/official/worker.py"), server.file("work")]
        with open(server.file("worker.log"), "w") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)
        try:
            polls = lambda: server.report()["requests"].get("poll", {}).get("count", 0)
            wait_for(lambda: polls() > 0 or process.poll() is not None, f"{kind} to poll")
            if process.poll() is not None:
                with open(server.file("worker.log"), encoding="utf-8") as log:
                    raise SystemExit(f"error: {kind} ended: {log.read()[-2000:]}")
            yield server, process
        finally:
            end(process)
            server.stop()


def processes_below(pid):
    """The process and everything below it."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                    parent = int(stat.read().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, []))
    return found


def cpu_seconds(pid):
    total = 0
    for one in processes_below(pid):
        with contextlib.suppress(OSError):
            with open(f"/proc/{one}/stat", encoding="utf-8", errors="replace") as stat:
                # utime, stime, and those of children that are gone
                total += sum(map(int, stat.read().rsplit(")", 1)[1].split()[11:15]))
    return total / TICKS


def pss_bytes(pid):
    total = 0
    for one in processes_below(pid):
        with contextlib.suppress(OSError):
            with open(f"/proc/{one}/smaps_rollup", encoding="utf-8") as lines:
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def calls(kind, arguments, results):
    """`true`, one call after the other in one session."""
    with serving(kind, arguments) as (server, process):
        [session] = server.push(end="open", calls=[{"bash": "true", "repeat": 20}])

        def answered():
            [ours] = [one for one in server.report()["sessions"] if one["id"] == session]
            return [call for call in ours["calls"] if call["answered_us"] is not None]

        wait_for(lambda: len(answered()) == 20, f"calls of {kind}", 0.05)
        before = cpu_seconds(process.pid)
        server.dev(f"sessions/{session}/steps", [{"bash": "true", "repeat": arguments.calls}])
        wait_for(lambda: len(answered()) == 20 + arguments.calls, f"calls of {kind}", 0.2)
        cpu = cpu_seconds(process.pid) - before
        latencies = [call["latency_us"] / 1000 for call in answered()[20:]]
    results["call p50, ms"].append(percentile(latencies, 50))
    results["call p99, ms"].append(percentile(latencies, 99))
    results["CPU s per 1,000 calls"].append(cpu / arguments.calls * 1000)


def first_results(kind, arguments, results):
    """Sessions that come one by one, at random times."""
    claimed, arrived = [], []
    with serving(kind, arguments) as (server, _):
        for _ in range(arguments.arrivals):
            time.sleep(random.uniform(0.5, 3.5))
            server.push(calls=[{"bash": "true"}])
            wait_for(lambda: server.dev("state")["done"], f"a session of {kind}", 0.05)
        report = server.report()
        sessions = {one["id"]: one for one in report["sessions"]}
        for item in report["work"]:
            session = sessions[item["session"]]
            claimed.append((session["first_result_us"] - item["holders"][0]["polled_us"]) / 1000)
            arrived.append((session["first_result_us"] - session["created_us"]) / 1000)
    results["first result, poll open, ms"].append(statistics.median(claimed))
    results["first result, after 0.5 to 3.5 s without work, ms"].append(statistics.median(arrived))


def idle(kind, arguments, results):
    """One worker that has nothing to do, for longer than it stays eager."""
    with serving(kind, arguments) as (server, process):
        time.sleep(3)
        results["idle, PSS, MiB"].append(pss_bytes(process.pid) / 2**20)
        before, polls = cpu_seconds(process.pid), server.report()["requests"]["poll"]["count"]
        time.sleep(12)
        results["idle, polls per minute"].append((server.report()["requests"]["poll"]["count"] - polls) * 5)
        results["idle, CPU ms per minute"].append((cpu_seconds(process.pid) - before) * 5000)


def many(kind, arguments, results):
    """Sessions of five calls each, all queued at once."""
    count = arguments.sessions
    with serving(kind, arguments, count) as (server, process):
        began, peak = time.monotonic(), 0
        server.push(copies=count, calls=[{"bash": "true"}, {"bash": "cd /tmp; echo $$ > pid"},
                                         {"bash": "cat /tmp/pid"}, {"glob": "*"}, {"bash": "echo done"}])
        done = lambda: server.dev("state")["done"]
        while not done():
            if time.monotonic() - began > PATIENCE:
                raise SystemExit(f"error: {count} sessions of {kind} took longer than {PATIENCE} s")
            peak = max(peak, pss_bytes(process.pid))
            time.sleep(0.05)
        report = server.report()
        last = max(call["answered_us"] for one in report["sessions"] for call in one["calls"])
        first = min(one["created_us"] for one in report["sessions"])
    results[f"{count} sessions, makespan, ms"].append((last - first) / 1000)
    results[f"{count} sessions, memory peak, PSS, MiB"].append(peak / 2**20)


# What is measured, the ratio that must hold, and the one that is aimed at (design, section 10).
TARGETS = {
    "call p50, ms": (0.25, 0.17),
    "CPU s per 1,000 calls": (0.15, 0.08),
    "first result, poll open, ms": (0.6, 0.4),
    "first result, after 0.5 to 3.5 s without work, ms": (0.25, 0.05),
    "sessions, makespan, ms": (0.08, 0.06),
    "idle, PSS, MiB": (0.15, 0.08),
}


def show(results):
    print(f"\n{'medians':<52} {'jailed':>9} {'Python':>9} {'ratio':>7}   must, aim")
    for what, ours in results[OURS].items():
        ours, theirs = statistics.median(ours), statistics.median(results[THEIRS][what])
        targets = [both for name, both in TARGETS.items() if what.endswith(name)]
        tail = f"≤ {targets[0][0]}, ≤ {targets[0][1]}" if targets else ""
        ratio = f"{ours / theirs:.2f} ×" if theirs else "-"
        print(f"  {what:<50} {ours:>9.2f} {theirs:>9.2f} {ratio:>7}   {tail}")


class Results(dict):
    def __missing__(self, what):
        self[what] = []
        return self[what]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--arrivals", type=int, default=8)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--only", choices=["calls", "first", "idle", "many"])
    parser.add_argument("--kind", choices=["ours", "theirs"])
    arguments = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    os.chmod(scratch.name, 0o755)
    arguments.worker = shutil.copy(arguments.worker, os.path.join(scratch.name, "worker"))
    kernel = os.uname()
    print(f"Linux {kernel.release} {kernel.machine}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
          f"worker of {os.path.getsize(arguments.worker) / 2**20:.1f} MiB, level "
          f"{'root' if os.geteuid() == 0 else 'rootless'}; {arguments.rounds} rounds, in turn")
    if os.getloadavg()[0] > os.cpu_count() / 2:
        print("warning: this machine is busy with something else; repeat when it is not", file=sys.stderr)
    print("the official worker runs tools without a jail, one session at a time")
    results = {OURS: Results(), THEIRS: Results()}
    measures = {"calls": calls, "first": first_results, "idle": idle, "many": many}
    kinds = {"ours": [OURS], "theirs": [THEIRS], None: [OURS, THEIRS]}[arguments.kind]
    for _ in range(arguments.rounds):
        for name, measure in measures.items():
            if arguments.only in (None, name):
                random.shuffle(kinds)
                for kind in kinds:
                    measure(kind, arguments, results[kind])
    if arguments.kind:
        print(json.dumps(results[kinds[0]], indent=1))
    else:
        show(results)


if __name__ == "__main__":
    main()
