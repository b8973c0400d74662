"""Measures connections out of a jail against other ways out of a network namespace; run by
scripts/bench.

A server stands at a public documentation address in a network namespace of its own. The same client
reaches it directly (loopback), through a plain relay of two threads and copying buffers, through
slirp4netns and pasta, and from a jail through the broker, in turn, in rounds. Throughput is one
connection's; latency is from connect to the first byte back; CPU is that of the process in between
(of all its threads), user and system.
"""

import argparse
import contextlib
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ADDRESS, PORT, RELAY_PORT, NAME = "203.0.113.10", "7001", "7002", "peer.example.com"
GIB = 1 << 30
PATIENCE = 10  # seconds for one transfer or series
TICKS = os.sysconf("SC_CLK_TCK")
CLONE_NEWNS, CLONE_NEWNET, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x40000000, 4096, 16384, 1 << 18
LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result, what):
    if result != 0:
        raise SystemExit(f"error: cannot {what}: {os.strerror(ctypes.get_errno())}")


def run(*command, **more):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **more).stdout


class Place:
    """A network with the server's address, and names that lead there; this process moves in."""

    def __init__(self, directory):
        checked(LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET), "make namespaces (root is needed)")
        checked(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "keep mounts private")
        run("ip", "link", "set", "lo", "up")
        run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
        # pasta and slirp4netns copy the addresses of an interface with a default route.
        run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "far")
        run("ip", "link", "set", "far", "up")
        run("ip", "address", "add", "192.0.2.2/24", "dev", "uplink")
        run("ip", "link", "set", "uplink", "up")
        run("ip", "route", "add", "default", "via", "192.0.2.1", "dev", "uplink")
        for name, text in (("hosts", f"127.0.0.1 localhost\n{ADDRESS} {NAME}\n"),
                           ("resolv.conf", "nameserver 127.0.0.1\n")):
            file = os.path.join(directory, name)
            with open(file, "w", encoding="utf-8") as out:
                out.write(text)
            os.chmod(file, 0o644)
            real = os.path.realpath(f"/etc/{name}")
            checked(LIBC.mount(file.encode(), real.encode(), None, MS_BIND, None), f"show {name}")


def cpu(pids):
    """Seconds of CPU of processes."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


@contextlib.contextmanager
def started(command, ready=None, **more):
    process = subprocess.Popen(command, stdout=subprocess.PIPE if ready else subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, stdin=subprocess.PIPE, text=True, **more)
    try:
        if ready and process.stdout.readline().strip() != ready:
            raise SystemExit(f"error: {command[0]} does not start")
        yield process
    finally:
        process.kill()
        process.wait()


class Way:
    """One way from a client to the server."""

    def __init__(self, name, prefix, host, port, between):
        self.name, self.prefix, self.host, self.port, self.between = name, prefix, host, port, between
        self.rates, self.latencies, self.costs = {"up": [], "down": []}, [], []
        self.failed = 0

    def client(self, peer, what, amount):
        line = [*self.prefix, peer, what, self.host, self.port, str(amount)]
        out = run(*line, stderr=subprocess.DEVNULL, timeout=PATIENCE)
        return [float(line) for line in out.split()]

    def measure(self, peer, amount, pings):
        for what in ("up", "down"):
            before = cpu(self.between())
            try:
                [seconds] = self.client(peer, what, amount)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                self.failed += 1  # said below; one that always fails has no figure
                continue
            if self.between():
                self.costs.append((cpu(self.between()) - before) / (amount / GIB))
            self.rates[what].append(amount * 8 / seconds / 1e9)
        self.latencies.extend(self.client(peer, "pings", pings))


class Jail(Way):
    """From a jail through the broker."""

    def __init__(self, worker, directory):
        policy = os.path.join(directory, "egress.toml")
        rule = f'[{{ rule = "{NAME}:{PORT}", private = true }}]'  # the server is on this host
        with open(policy, "w", encoding="utf-8") as out:
            out.write(f'schema = 1\nextends = "default"\n[network]\nallow = {rule}\n')
        self.process = subprocess.Popen(
            [worker, "exec", "--policy", policy, "--workspace", directory, "--", "/bin/sh"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        super().__init__("worker (broker)", [], NAME, PORT, lambda: [self.process.pid])

    def client(self, peer, what, amount):
        name = os.path.basename(peer)
        self.process.stdin.write(f"/workspace/{name} {what} {NAME} {PORT} {amount}; echo end\n")
        self.process.stdin.flush()
        found = []
        for line in self.process.stdout:
            if line.strip() == "end":
                return found
            found.append(float(line))
        raise SystemExit("error: the jail ended")


def namespace(stack):
    """A process in a network namespace of its own; its id."""
    holder = stack.enter_context(started(["unshare", "--net", "sh", "-c",
                                          "ip link set lo up; echo ready; exec sleep 3600"], "ready"))
    return holder.pid


def ways(stack, worker, peer, directory):
    stack.enter_context(started([peer, "serve", ADDRESS, PORT], "ready"))
    yield Way("loopback, nothing between", [], ADDRESS, PORT, lambda: [])
    relay = stack.enter_context(started([peer, "relay", RELAY_PORT, ADDRESS, PORT], "ready"))
    yield Way("plain relay", [], "127.0.0.1", RELAY_PORT, lambda: [relay.pid])
    pid = namespace(stack)
    slirp = stack.enter_context(started(
        ["slirp4netns", "--configure", "--mtu=65520", str(pid), "tap0"]))
    time.sleep(1)
    yield Way("slirp4netns", ["nsenter", "--net", "-t", str(pid)], ADDRESS, PORT,
              lambda: [slirp.pid])
    # It has to start the namespace's first process itself; its user namespace goes with it.
    pasta = stack.enter_context(started(
        ["pasta", "--foreground", "--quiet", "--ipv4-only", "--config-net", "--runas", "0", "--",
         "sh", "-c", "echo ready; exec sleep 3600"], "ready"))
    with open(f"/proc/{pasta.pid}/task/{pasta.pid}/children", encoding="utf-8") as children:
        pid = children.read().split()[0]
    time.sleep(1)
    yield Way("pasta", ["nsenter", "--user", "--net", "--preserve-credentials", "-t", pid],
              ADDRESS, PORT, lambda: [pasta.pid])
    jail = Jail(worker, directory)
    stack.callback(jail.process.wait)
    stack.callback(jail.process.stdin.close)
    yield jail


def quantile(values, at):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * at))]


def show(all_ways):
    relay = next(way for way in all_ways if way.name == "plain relay")
    print(f"{'':28}{'up Gbit/s':>11}{'down':>8}{'first byte p50 µs':>19}{'p99':>8}"
          f"{'CPU s/GiB':>11}   ratios to the plain relay")
    for way in all_ways:
        up, down = (statistics.median(way.rates[what] or [0]) for what in ("up", "down"))
        p50, p99 = (quantile(way.latencies, at) * 1e6 for at in (0.5, 0.99))
        cost = statistics.median(way.costs) if way.costs else 0
        ratios = "{:.2f} / {:.2f} / {:.2f} / {:.2f}".format(
            up / statistics.median(relay.rates["up"]), down / statistics.median(relay.rates["down"]),
            p50 / (quantile(relay.latencies, 0.5) * 1e6), cost / statistics.median(relay.costs))
        print(f"{way.name:28}{up:11.1f}{down:8.1f}{p50:19.0f}{p99:8.0f}{cost:11.2f}   {ratios}")
        if way.failed:
            print(f"{'':28}({way.failed} transfers broke off)")
    print("ratios: throughput up / down (more is better), first byte p50 / CPU per GiB (less is better)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--worker", required=True, help="the binary")
    parser.add_argument("--rounds", type=int, default=3, help="rounds [default: 3]")
    parser.add_argument("--gib", type=float, default=2, help="GiB each way and round [default: 2]")
    parser.add_argument("--pings", type=int, default=500, help="connections a round [default: 500]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        os.chmod(directory, 0o755)
        shared = os.path.join(directory, "workspace")
        os.mkdir(shared, 0o755)
        peer = os.path.join(shared, "egress_peer")
        run("gcc", "-O2", "-pthread", "-o", peer, os.path.join(HERE, "egress_peer.c"))
        Place(directory)
        found = list(ways(stack, given.worker, peer, shared))
        for _ in range(given.rounds):
            for way in found:
                way.measure(peer, int(given.gib * GIB), given.pings)
        show(found)


if __name__ == "__main__":
    main()
