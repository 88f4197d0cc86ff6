"""What a cut network costs a training: its hosts are network namespaces around a router. At a random moment one host is cut
off: the router drops what the sides send each other, or the cable is pulled; neither resets a connection. Measured is the
time from the cut to the first update that all members of the side with the store have closed. Beside it stands the time
after which a silence, or the end of a lease, is believed, which is configured.

The host that was cut off must freeze, and close no update once the others' next view is ready: else the benchmark ends. Each
cut has a new job, since the side that is cut off ends with it.

It runs in a sandbox of its own, so it needs root or user namespaces."""
import json
import random
import shutil
import sys
import time
from collections import namedtuple
from pathlib import Path

from bench_leader import LEASE_S, Etcd
from elastic_training import SLEEP_MS, Training, boot_ns, until
from two_hosts import rows_of_sandbox
from namespaces import RoutedHosts, furnish_sandbox  # two_hosts has made it findable

SILENCE_S = 2  # less than the default, so that a cut takes seconds
STORE = "store"  # the host of etcd
WORKERS_IN_ALL = {2: 4, 3: 2}  # of each agent, by their number

# `names` in the order in which their agents start: the first leads. `other` is cut off from all others and the store.
Case = namedtuple("Case", "words names other etcd detection_s")
CASES = [Case("2 nodes, store at the leader", "ab", "b", False, SILENCE_S),
         Case("3 nodes, etcd, leader stays", "abc", "c", True, SILENCE_S),
         Case("3 nodes, etcd, leader cut off", "abc", "a", True, LEASE_S)]
WAYS = {"packets dropped": RoutedHosts.isolate, "cable pulled": RoutedHosts.unplug}


class CutTraining(Training):
    # UCX takes two namespaces of one machine for one host, and would meet the other on the loopback device.
    ENVIRONMENT = {"UCX_NET_DEVICES": "eth"}

    def __init__(self, build, network, case, etcd, job):
        self.network, self.etcd, self.job = network, etcd, job
        self.AGENT_OPTIONS = [*Training.AGENT_OPTIONS, "--node-silence", SILENCE_S, "--bind", "none"]
        super().__init__(build, nodes=f"1:{len(case.names)}", names=case.names, workers=WORKERS_IN_ALL[len(case.names)])

    def rendezvous(self):
        if self.etcd is None:
            return ["--rdzv", f"{self.network.address(self.names[0])}:{self.port}"]
        return ["--rdzv", self.etcd.url(), "--rdzv-lease", LEASE_S, "--job", self.job]

    def prefix(self, name):
        return self.network.inside(name)

    def frozen_at(self, name):
        """The moment at which the agent, or the first of its workers, says so; None: not yet."""
        self.look()
        return min((event["at_ns"] for event in self.events if event["event"] == "frozen" and event["node"] == name), default=None)


def cut_once(training, case, isolate, chance):
    """Milliseconds from the cut, by what follows it."""
    generation = training.until_world(len(case.names) * training.workers)
    of_other = set(training.pids[case.other].values())
    time.sleep(chance.uniform(0, SLEEP_MS / 1000))
    cut_at = boot_ns()
    isolate(training.network, [case.other])
    ready, committed = training.recovery(cut_at, generation, (len(case.names) - 1) * training.workers)
    frozen_at = until(lambda: training.frozen_at(case.other), "the side that is cut off to freeze")
    updates = training.read_updates(of_other)
    last = (max(at for versions in updates.values() for moments in versions.values() for at, _ in moments) - cut_at) / 1e6
    if last > ready or max(updates) > generation:
        raise RuntimeError(f"the side that was cut off has closed an update {last:.1f} ms after the cut, in generation {max(updates)}; "
                           f"the others' view was ready after {ready:.1f} ms, the former one is {generation}")
    return {"committed": committed, "frozen": (frozen_at - cut_at) / 1e6, "last": last}


def cuts_of(build, network, case, etcd, rounds, chance):
    for number in range(rounds):
        for way, isolate in WAYS.items():
            training = CutTraining(build, network, case, etcd, f"{case.other}-{way[0]}{number}")
            try:
                figures = cut_once(training, case, isolate, chance)
            finally:
                training.close()
                network.heal()
            yield {"case": f"{way}, {case.words}", "detection": 1000 * case.detection_s, **figures}


def main():
    build, rounds = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(1)
    furnish_sandbox()
    network = RoutedHosts([*"abc", STORE])
    etcd = Etcd(network.address(STORE), network.inside(STORE)) if shutil.which("etcd") else None
    try:
        for case in CASES:
            if case.etcd and etcd is None:
                print(json.dumps({"case": case.words, "lacking": "no etcd here (Debian: etcd-server)"}), flush=True)
                continue
            for cut in cuts_of(build, network, case, etcd if case.etcd else None, rounds, chance):
                print(json.dumps(cut), flush=True)
    finally:
        if etcd is not None:
            etcd.close()


def cut_links(build, rounds):
    """The figures of each cut. Raises Refused where there can be no sandbox."""
    return rows_of_sandbox(__file__, build.resolve(), rounds)


if __name__ == "__main__":
    main()
