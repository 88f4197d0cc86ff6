"""Two hosts: network namespaces joined by a veth pair, or up to eight on a bridge, as fast as it goes or throttled at every end, in
a sandbox that takes all that was in it along when it ends. It needs root or user namespaces."""
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests" / "support"), str(TOP / "scripts")]
from jobs import STEP_LINE, Job, wait_until  # noqa: E402, F401
from namespaces import add_host, furnish_sandbox, ip, run, sandbox_command, throttle, unthrottle  # noqa: E402

HOSTS = ("a", "b")
MANY_HOSTS = tuple("abcdefgh")
ADDRESSES = {host: f"10.78.0.{number + 1}" for number, host in enumerate(MANY_HOSTS)}
DEVICE = "eth"
BRIDGE = "switch"
# A burst of some tens of packets: larger ones make short messages look faster than the link, smaller ones than what the
# stack hands over at once cost the link part of its rate.
LINKS = {"1 Gbit/s": ("1gbit", "64kb"), "unthrottled": None, "100 Mbit/s": ("100mbit", "16kb")}
QUEUE_LATENCY = "50ms"
# As wide as Linux leaves it, whatever this machine is set to; and the one congestion control that every namespace may choose
# and that has no clock of its own: with BBR, which some machines are set to, exchanges of both directions wait for probes.
TCP = {"tcp_congestion_control": "reno", "tcp_rmem": "4096 131072 6291456", "tcp_wmem": "4096 16384 4194304",
       "tcp_limit_output_bytes": "262144"}
PATIENCE = 60


class Refused(Exception):
    """There can be no sandbox here; the text says why."""


def rows_of_sandbox(script, *words):
    """The rows that the program prints as JSON inside a sandbox of its own."""
    command = sandbox_command()
    if isinstance(command, str):
        raise Refused(command)
    inside = subprocess.Popen([*command, sys.executable, script, *[str(word) for word in words]], stdout=subprocess.PIPE, text=True)
    try:
        for line in inside.stdout:
            yield json.loads(line)
        if inside.wait() != 0:
            raise RuntimeError(f"the benchmark in the sandbox ended with {inside.returncode}")
    finally:
        inside.kill()  # unshare ignores SIGTERM, and takes all that is in the sandbox with it


def join_hosts(hosts=HOSTS):
    furnish_sandbox()
    for host in hosts:
        add_host(host)
    if len(hosts) == 2:
        ip("link", "add", DEVICE, "netns", hosts[0], "type", "veth", "peer", "name", DEVICE, "netns", hosts[1])
    else:
        join_by_bridge(hosts)
    for number, host in enumerate(hosts):
        for name, value in TCP.items():
            run("ip", "netns", "exec", host, "sysctl", "-q", "-w", f"net.ipv4.{name}={value}")
        ip("-n", host, "addr", "add", f"{ADDRESSES[host]}/24", "dev", DEVICE)
        # A veth hands packets to the core that sends, and a token bucket sends from whatever core its timer fires on: they
        # would arrive out of order, which TCP takes for a loss. A host's cores take what it is sent, as if they were its own.
        cores = cores_of(number, len(hosts))
        run("ip", "netns", "exec", host, "sh", "-c", f"echo {cores} > /sys/class/net/{DEVICE}/queues/rx-0/rps_cpus")
        ip("-n", host, "link", "set", DEVICE, "up")
    for host in hosts:  # the kernel takes a moment to find the carrier, and UCX leaves out a device without
        wait_until(lambda: "NO-CARRIER" not in link_state(host), PATIENCE, "the link")


def join_by_bridge(hosts):
    ip("link", "add", "name", BRIDGE, "type", "bridge")
    ip("link", "set", BRIDGE, "up")
    for host in hosts:
        port = f"port-{host}"
        ip("link", "add", "name", port, "type", "veth", "peer", "name", DEVICE, "netns", host)
        ip("link", "set", port, "master", BRIDGE, "up")


def cores_of(number, hosts):
    """The mask of a host's share of the cores; pin() in turns.h gives its ranks the same."""
    cores = os.cpu_count()
    first, last = number * cores // hosts, (number + 1) * cores // hosts
    return f"{sum(1 << core % cores for core in range(first, max(last, first + 1))):x}"


def link_state(host):
    return subprocess.run(["ip", "-n", host, "link", "show", DEVICE], capture_output=True, text=True).stdout


def set_link(limits, hosts=HOSTS):
    """Both ways; None lifts the limit."""
    for host in hosts:
        if limits is not None:
            throttle(host, DEVICE, *limits, QUEUE_LATENCY)
        elif " tbf " in run("tc", "-n", host, "qdisc", "show", "dev", DEVICE):
            unthrottle(host, DEVICE)


def on_host(host, *words):
    return shlex.join(["ip", "netns", "exec", host, *[str(word) for word in words]])


def sent_bytes():
    """By both hosts to each other until now, as their devices count."""
    links = [json.loads(run("ip", "-n", host, "-s", "-j", "link", "show", "dev", DEVICE)) for host in HOSTS]
    return sum(link[0]["stats64"]["tx"]["bytes"] for link in links)


def train(build, options, on_line=None, patience=2 * PATIENCE):
    """The GPT example with a worker on each host, until its end; what its agents said. `on_line` as in jobs.py."""
    job = Job(build, "bench")
    try:
        for host in HOSTS:
            # UCX takes two namespaces of one machine for one host, and would meet the other on the loopback device.
            job.start(host, 1, [build / "bin" / "gpt", *options], nodes="2:2", on_line=on_line,
                      env={"UCX_NET_DEVICES": DEVICE, "OMP_NUM_THREADS": "1"}, extra=["--quiet"],
                      rdzv=f"{ADDRESSES['a']}:{job.port}", prefix=["ip", "netns", "exec", host])
            if host == "a":
                wait_until(lambda: any(event["event"] == "node joined" for event in job.agents[0].events()), PATIENCE, "the store")
        for agent in job.agents:
            if (code := agent.wait(patience)) != 0:
                raise RuntimeError(f"the training ended with {code}:\n" + "\n".join(agent.lines[-20:]))
        return [line for agent in job.agents for line in agent.lines]
    finally:
        job.close()
