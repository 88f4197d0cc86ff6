"""How long a lost leader costs where the store is etcd: three agents of one worker, a lease of 3 s. The leader's agent is killed,
or stopped so that its connections stay: to the end of its key in etcd, from there to the next leader's key, and from the loss to
the next step that all who are left have committed. Each time with a new job, so that no loss follows from the one before."""
import base64
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import urllib.request
from pathlib import Path

from bench_recovery import FOREVER, Lines, Training, boot_ns, until

NAMES, LEASE_S = "abc", 3
LOSSES_OF_A_ROUND = 2  # of each kind


class Etcd:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="muster-bench-")
        with socket.socket() as client, socket.socket() as peer:
            client.bind(("127.0.0.1", 0))
            peer.bind(("127.0.0.1", 0))
            self.port = client.getsockname()[1]
            mine, others = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (client, peer))
        self.process = subprocess.Popen(
            ["etcd", "--data-dir", self.folder + "/data", "--unsafe-no-fsync", "--listen-client-urls", mine,
             "--advertise-client-urls", mine, "--listen-peer-urls", others, "--initial-advertise-peer-urls", others,
             "--initial-cluster", f"default={others}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self.healthy, "etcd", pause=0.05)

    def healthy(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1) as answer:
                return json.load(answer).get("health") == "true"
        except (OSError, ValueError):
            return False

    def note_changes(self, key, changes):
        """(moment, kind) of each change of the key from now on, on a thread of its own, until etcd ends."""
        body = json.dumps({"create_request": {"key": base64.b64encode(key.encode()).decode()}}).encode()
        answer = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v3/watch", body)

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

    def __init__(self, build, etcd, job):
        self.etcd, self.job, self.changes = etcd, job, []
        etcd.note_changes(f"/muster/{job}/leader", self.changes)
        super().__init__(build, names=NAMES)

    def until_first_view(self):
        self.until_world(len(NAMES))

    def start(self, name):
        self.count += 1
        events = self.folder / f"events-{self.count}"
        command = [self.build / "bin" / "muster", "run", "--quiet", "--nnodes", f"1:{len(NAMES)}", "--nproc", 1, "--rdzv",
                   f"etcd://127.0.0.1:{self.etcd.port}", "--rdzv-lease", LEASE_S, "--job", self.job, "--secret-file", self.secret,
                   "--node-name", name, "--events", events, "--form-wait", 1, "--bind", "none", "--",
                   self.build / "bin" / "bench_recovery", "whole", 1 << 20, 1 << 16, self.sleep_ms, FOREVER, self.folder / "updates"]
        self.pids[name] = {}
        self.sources[Lines(events)] = name
        with open(self.folder / f"said-{name}", "w") as said:
            self.agents[name] = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=said,
                                                 start_new_session=True)

    def leader(self):
        """The first one: this job has lost none yet."""
        return next(name for name in NAMES if "leads, as leader 1 " in (self.folder / f"said-{name}").read_text())


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
