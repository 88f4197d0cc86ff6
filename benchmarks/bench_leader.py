"""How long a lost leader costs where the store is etcd: three agents of one worker, a lease of 3 s. The leader's agent is killed,
or stopped so that its connections stay: to the end of its key in etcd, from there to the next leader's key, and from the loss to
the next step that all who are left have committed. Each time with a new job, so that no loss follows from the one before."""
import base64
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import urllib.request

from elastic_training import Training, boot_ns, free_port, until

NAMES, LEASE_S = "abc", 3
LOSSES_OF_A_ROUND = 2  # of each kind


class Etcd:
    """One member, on the loopback or where `prefix` starts it."""

    def __init__(self, host="127.0.0.1", prefix=()):
        self.folder = tempfile.mkdtemp(prefix="muster-bench-")
        self.host, self.port = host, free_port()
        mine, others = (f"http://{host}:{port}" for port in (self.port, free_port()))
        self.process = subprocess.Popen(
            [*prefix, "etcd", "--data-dir", self.folder + "/data", "--unsafe-no-fsync", "--listen-client-urls", mine,
             "--advertise-client-urls", mine, "--listen-peer-urls", others, "--initial-advertise-peer-urls", others,
             "--initial-cluster", f"default={others}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def until_healthy(self):
        until(self.healthy, "etcd", pause=0.05)

    def url(self):
        return f"etcd://{self.host}:{self.port}"

    def healthy(self):
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.port}/health", timeout=1) as answer:
                return json.load(answer).get("health") == "true"
        except (OSError, ValueError):
            return False

    def note_changes(self, key, changes):
        """(moment, kind) of each change of the key from now on, on a thread of its own, until etcd ends."""
        body = json.dumps({"create_request": {"key": base64.b64encode(key.encode()).decode()}}).encode()
        answer = urllib.request.urlopen(f"http://{self.host}:{self.port}/v3/watch", body)

        def read():
            for line in answer:
                changes.extend((boot_ns(), event.get("type", "PUT")) for event in json.loads(line)["result"].get("events", []))
        threading.Thread(target=read, daemon=True).start()

    def close(self):
        self.process.kill()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


class EtcdTraining(Training):
    """Agents that find their leader by etcd."""

    STATE_BYTES, UPDATED_BYTES = 1 << 20, 1 << 16
    AGENT_OPTIONS = ["--rdzv-lease", LEASE_S, "--bind", "none"]

    def __init__(self, build, etcd, job):
        self.etcd, self.job, self.changes = etcd, job, []
        etcd.note_changes(f"/muster/{job}/leader", self.changes)
        super().__init__(build, names=NAMES, nodes=f"1:{len(NAMES)}", workers=1)

    def rendezvous(self):
        return ["--rdzv", self.etcd.url(), "--job", self.job]

    def leader(self):
        """The first one: this job has lost none yet."""
        return next(name for name in NAMES if "leads, as leader 1 " in self.said(name).read_text())


def lose_leader(build, etcd, job, how, chance):
    """Milliseconds to the key's end, from there to the next key, and to the next step."""
    training = EtcdTraining(build, etcd, job)
    try:
        generation, leader = training.until_world(len(NAMES)), training.leader()
        lost_at = boot_ns() + int(chance.uniform(0, LEASE_S / 6) * 1e9)  # anywhere between two renewals
        until(lambda: boot_ns() >= lost_at, "the moment of the loss")
        os.kill(training.agents[leader].pid, how)
        _, committed = training.recovery(lost_at, generation, len(NAMES) - 1)
        gone = next(at for at, kind in training.changes if kind == "DELETE")
        taken = next(at for at, kind in training.changes if kind == "PUT" and at > gone)
        return (gone - lost_at) / 1e6, (taken - gone) / 1e6, committed
    finally:
        training.close()


def row(case, metric, value):
    return {"bench": "leader", "case": case, "metric": metric, "unit": "ms", "ours": value,
            **dict.fromkeys(("peer", "peer_value", "ratio", "bound", "of_bound"))}


def leader(build, rounds):
    if not shutil.which("etcd"):
        yield row("no etcd here (Debian: etcd-server)", "not measured", None)
        return
    chance = random.Random(1)
    etcd = Etcd()
    etcd.until_healthy()
    took = {signal.SIGKILL: [], signal.SIGSTOP: []}
    try:
        for number in range(LOSSES_OF_A_ROUND * rounds):
            for how, figures in took.items():
                figures.append(lose_leader(build, etcd, f"{how.name}-{number}", how, chance))
    finally:
        etcd.close()
    for how, words in ((signal.SIGKILL, "killed"), (signal.SIGSTOP, "stopped")):
        for metric, values in zip(("key gone p50", "place vacant p50", "next commit p50"), zip(*took[how])):
            yield row(f"leader's agent {words}, {len(values)} times, lease {LEASE_S} s", metric, round(statistics.median(values), 1))
