"""Hosts that are network namespaces, inside a sandbox of namespaces (users, mounts, processes, networks): when the program
that entered it ends, so does everything in it, and nothing of it was ever seen outside."""
import os
import shutil
import subprocess
import sys

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
