"""Hosts that are network namespaces, inside a sandbox of namespaces (users, mounts, processes, networks): when the program
that entered it ends, so does everything in it, and nothing of it was ever seen outside."""
import os
import shutil
import subprocess
import sys

ROUTER = "router"
INSIDE = "NETNS_TEST_IN_SANDBOX"  # not MUSTER_…: agents refuse variables of that name that they do not know


class NetworkError(RuntimeError):
    """A command that makes or changes a network was refused."""


def run(*words):
    """What the command says."""
    words = [str(word) for word in words]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def ip(*words):
    run("ip", *words)


def sandbox_command():
    """The words before a command that runs it inside a sandbox of its own, or the reason why that cannot be."""
    for tool in ("unshare", "ip", "tc"):
        if not shutil.which(tool):
            return f"no {tool} here (Debian: {'util-linux' if tool == 'unshare' else 'iproute2'})"
    kinds = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        kinds.append("--map-root-user")
    probe = ("mount -t tmpfs none /run && ip link set lo up && ip netns add probe && ip link add one type veth peer two "
             "netns probe && tc qdisc add dev one root tbf rate 1mbit burst 16kb latency 100ms && "
             "ip rule add iif one blackhole && ip netns exec probe sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'")
    tried = subprocess.run(["unshare", *kinds, "sh", "-c", probe], capture_output=True, text=True)
    if tried.returncode != 0:
        return "the kernel refuses what is needed: " + (tried.stderr.strip().splitlines() or ["no words"])[-1]
    return ["unshare", *kinds]


def enter_sandbox():
    """Starts this program anew inside; returns its exit code, or the reason why that cannot be."""
    command = sandbox_command()
    if isinstance(command, str):
        return command
    return subprocess.run([*command, sys.executable, *sys.argv], env=dict(os.environ, **{INSIDE: "1"})).returncode


def is_inside():
    return bool(os.environ.get(INSIDE))


def furnish_sandbox():
    """Inside: a loopback device, and a place for the names of namespaces."""
    ip("link", "set", "lo", "up")
    run("mount", "-t", "tmpfs", "none", "/run")


def add_host(name):
    ip("netns", "add", name)
    ip("-n", name, "link", "set", "lo", "up")


def throttle(host, device, rate, burst, latency):
    """What `host` sends through `device`. Where `latency` is short, what waits is late by a moment, and the rest lost."""
    run("tc", "-n", host, "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate, "burst", burst, "latency", latency)


def unthrottle(host, device):
    run("tc", "-n", host, "qdisc", "del", "dev", device, "root")


class RoutedHosts:
    """A router, and hosts around it: host NAME has the address 10.77.N.2 on its device `eth`, the router's end is
    `to-NAME`."""

    def __init__(self, names):
        self.names, self.rules, self.unplugged = list(names), [], []
        add_host(ROUTER)
        subprocess.run(["ip", "netns", "exec", ROUTER, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True)
        for number, name in enumerate(self.names):
            add_host(name)
            ip("link", "add", "eth", "netns", name, "type", "veth", "peer", "name", f"to-{name}", "netns", ROUTER)
            for space, device, last in ((name, "eth", 2), (ROUTER, f"to-{name}", 1)):
                ip("-n", space, "addr", "add", f"10.77.{number}.{last}/24", "dev", device)
                ip("-n", space, "link", "set", device, "up")
            ip("-n", name, "route", "add", "default", "via", f"10.77.{number}.1")

    def address(self, name):
        return f"10.77.{self.names.index(name)}.2"

    def lose(self, senders, receivers):
        """What any of `senders` sends to any of `receivers` is lost from now on, without a word."""
        for sender in senders:
            for receiver in receivers:
                rule = ("from", self.address(sender), "to", self.address(receiver), "blackhole", "priority", 100)
                ip("-n", ROUTER, "rule", "add", *rule)
                self.rules.append(rule)

    def cut(self, side, other):
        self.lose(side, other)
        self.lose(other, side)

    def inside(self, name):
        """The words before a command that run it there."""
        return ["ip", "netns", "exec", name]

    def isolate(self, names):
        """From all others."""
        self.cut(names, [name for name in self.names if name not in names])

    def unplug(self, names):
        """Their cables, at the router's end: each device of theirs loses its carrier."""
        for name in names:
            ip("-n", ROUTER, "link", "set", f"to-{name}", "down")
            self.unplugged.append(name)

    def heal(self):
        for rule in self.rules:
            ip("-n", ROUTER, "rule", "del", *rule)
        for name in self.unplugged:
            ip("-n", ROUTER, "link", "set", f"to-{name}", "up")
        self.rules, self.unplugged = [], []

    def throttle(self, name, rate):
        """Both ways. The queue is short, so that what waits in it is late by a moment, and the rest lost."""
        for space, device in ((name, "eth"), (ROUTER, f"to-{name}")):
            throttle(space, device, rate, "16kb", "300ms")

    def unthrottle(self, name):
        for space, device in ((name, "eth"), (ROUTER, f"to-{name}")):
            unthrottle(space, device)

    def close(self):
        for name in [*self.names, ROUTER]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
