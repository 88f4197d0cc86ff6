"""How long a loss costs: 8 workers on 2 agents, 64 MiB of state, replicated or sharded, of which a step reduces and updates
1 MiB, and 20 ms of sleep in each step whatever a rank's share of it. From SIGKILL of a worker, or of an agent, to the leader's "view
ready", and to the first update that the last member of the new view has closed; by how many of their usual steps a join makes the
others wait; from a cut network to the next update of the side that goes on (link_cut.py). Peers: everything killed and started
again from a checkpoint; torchrun's elastic restart, over Gloo, of a script that does the same; torchft, likewise (without a Python
that has torch or torchft their rows say so). PCCL has a row that says why it is not measured.

And, for `overhead`: processor time of the control plane for each step, and the time of a step, beside the same loop with
MPI_Allreduce."""
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections import namedtuple
from pathlib import Path

from elastic_training import PATIENCE, SLEEP_MS, UPDATED_BYTES, WORKERS, Training, boot_ns, until
from link_cut import cut_links
from recovery_peers import Torchft, Torchrun, median_recovery
from torch_python import not_measured, torch_python
from two_hosts import Refused

KILLS_OF_A_ROUND = 10
QUIET_S = 1.5  # about what a join takes
STALLED_STEPS = 1  # what a join may cost the others
BEYOND_DETECTION_MS = 500  # from when a cut is noticed to the next commit
TORCHRUN_KILLS, TORCHFT_KILLS = 5, 4  # those of torchft are so many times as many
# Of 2026-11-28: what keeps a peer from being measured here.
UNMEASURED = {"PCCL": "PyPI has no package pypccl for this Python"}


def kill_worker(training, chance):
    generation = training.until_world(2 * WORKERS)
    time.sleep(chance.uniform(0, SLEEP_MS / 1000))
    pids = [pid for name in "ab" for pid in training.pids[name].values()]
    killed_at = boot_ns()
    os.kill(chance.choice(pids), signal.SIGKILL)
    return training.recovery(killed_at, generation, 2 * WORKERS - 1)


def kill_agent(training, chance):
    generation = training.until_world(2 * WORKERS)
    time.sleep(chance.uniform(0, SLEEP_MS / 1000))
    killed_at = boot_ns()
    training.agents["b"].kill()
    figures = training.recovery(killed_at, generation, WORKERS)
    training.agents["b"].wait(10)
    return figures


# Of one join, milliseconds: the usual step before it, and by how much the longest of the others' steps outlasts that while node b
# joins, and in a while without a join, which tells what the machine by itself does to the longest of so many.
Join = namedtuple("Join", "step stall stall_without")


def join_again(training):
    """Counted are the updates that all who were there before have closed: the newcomers' first is not the others' wait."""
    training.until_world(WORKERS)
    members = set(training.pids["a"].values())
    quiet_from = boot_ns()
    time.sleep(QUIET_S)
    joins_from = boot_ns()
    training.start("b")
    training.until_world(2 * WORKERS)
    updates = training.read_updates(members)
    done = sorted(max(at for at, _ in moments) for versions in updates.values() for moments in versions.values()
                  if len(moments) == len(members))
    quiet = gaps_of(done, quiet_from, joins_from)
    step = statistics.median(quiet)
    return Join(step, max(gaps_of(done, joins_from, boot_ns())) - step, max(quiet) - step)


def gaps_of(moments, begin_ns=0, end_ns=math.inf):
    """Milliseconds between each that lies within and the one before it."""
    return [(later - earlier) / 1e6 for earlier, later in zip(moments, moments[1:]) if begin_ns <= later < end_ns]


def restart_way(build, folder):
    """Everything is killed and started again; milliseconds to the first update after it."""
    extra = [folder / "checkpoints", 25]
    training = Training(build, extra, nodes="2:2")  # so that nobody waits for more
    try:
        until(lambda: training.look() or any(event["event"] == "save durable" for event in training.events), "a save")
    except BaseException:
        training.close()
        raise
    killed_at = boot_ns()
    training.close()
    training = Training(build, extra, nodes="2:2")
    try:
        def firsts():
            return [max(at for at, _ in moments) for versions in training.read_updates().values()
                    for moments in versions.values() if len(moments) == 2 * WORKERS]
        return (min(until(firsts, "an update of all")) - killed_at) / 1e6
    finally:
        training.close()


def torch_row(case, ours, peer, kills, chance, module=None):
    """Each restart takes seconds, so there are few of them."""
    python, versions = torch_python(module)
    if not python:
        return row(case, "next commit p50", ours, None, not_measured(peer.NAME, module))
    took = median_recovery(peer(python), kills, chance)
    return row(case, "next commit p50", ours, None, f"{peer.NAME}, {kills} times, {versions}", took)


def unmeasured_rows(case, ours):
    for peer, why in UNMEASURED.items():
        yield row(case, "next commit p50", ours, None, f"{peer}: not measured ({why})")


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def row(case, metric, value, bound=None, peer=None, peer_value=None, unit="ms"):
    return {"bench": "recovery", "case": case, "metric": metric, "unit": unit, "ours": rounded(value), "peer": peer,
            "peer_value": rounded(peer_value), "ratio": None if peer_value is None else round(peer_value / value, 1),
            "bound": rounded(bound), "of_bound": None if bound is None else round(bound / value, 2)}


def rounded(value):
    return None if value is None else round(value, 1)


def losses_and_joins(build, rounds, chance, state):
    killed, lost, joins = [], [], []
    training = Training(build, state=state)
    try:
        for _ in range(KILLS_OF_A_ROUND * rounds):
            killed.append(kill_worker(training, chance))
        for _ in range(2 * rounds):
            lost.append(kill_agent(training, chance))
            joins.append(join_again(training))
    finally:
        training.close()
    return killed, lost, joins


def recovery(build, rounds):
    chance = random.Random(1)
    killed, lost, joins = losses_and_joins(build, rounds, chance, "whole")
    sharded = losses_and_joins(build, rounds, chance, "sharded")
    folder = Path(tempfile.mkdtemp(prefix="muster-bench-"))
    try:
        again = statistics.median(restart_way(build, folder) for _ in range(min(rounds, 3)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ready, committed = [a for a, _ in killed], [b for _, b in killed]
    case = f"worker killed, {len(killed)} times"
    yield row(case, "view ready p50", statistics.median(ready), 25)
    yield row(case, "view ready p99", percentile(ready, 0.99))
    yield row(case, "next commit p50", statistics.median(committed), 60, "all started again", again)
    yield row(case, "next commit p99", percentile(committed, 0.99), 250)
    yield torch_row(case, statistics.median(committed), Torchrun, min(rounds, TORCHRUN_KILLS), chance)
    yield torch_row(case, statistics.median(committed), Torchft, TORCHFT_KILLS * min(rounds, TORCHRUN_KILLS), chance, "torchft")
    yield from unmeasured_rows(case, statistics.median(committed))
    case = f"agent killed, {len(lost)} times"
    yield row(case, "view ready p50", statistics.median(a for a, _ in lost), 25)
    yield row(case, "next commit p50", statistics.median(b for _, b in lost), 60)
    yield row(case, "next commit p99", percentile([b for _, b in lost], 0.99), 250)
    yield from join_rows("node joins", joins)
    for what, figures in (("worker killed, state sharded", sharded[0]), ("agent killed, state sharded", sharded[1])):
        case = f"{what}, {len(figures)} times"
        yield row(case, "view ready p50", statistics.median(a for a, _ in figures), 25)
        yield row(case, "next commit p50", statistics.median(b for _, b in figures), 60)
        yield row(case, "next commit p99", percentile([b for _, b in figures], 0.99), 250)
    yield from join_rows("node joins, state sharded", sharded[2])
    yield from link_cut_rows(build, rounds)


def join_rows(what, joins):
    case = f"{what}, {len(joins)} times"
    yield row(case, "stall of others p50", statistics.median(join.stall for join in joins))
    for metric, stalls, bound in (("stall of others", [join.stall / join.step for join in joins], STALLED_STEPS),
                                  ("no join", [join.stall_without / join.step for join in joins], None)):
        yield row(case, f"{metric} p50", statistics.median(stalls), bound, unit="steps")
        yield row(case, f"{metric} max", max(stalls), bound, unit="steps")


def link_cut_rows(build, rounds):
    cuts = {}
    try:
        for cut in cut_links(build, rounds):
            if "lacking" in cut:
                yield row(cut["case"], "not measured", None, peer=cut["lacking"])
                continue
            cuts.setdefault((cut["case"], cut["detection"]), []).append(cut)
    except Refused as refused:
        yield row("link cut", "not measured", None, peer=str(refused))
    for (case, detection), found in cuts.items():
        committed = [cut["committed"] for cut in found]
        case += f", {len(found)} times"
        yield row(case, "detection, configured", detection)
        yield row(case, "next commit p50", statistics.median(committed), detection + BEYOND_DETECTION_MS)
        yield row(case, "next commit max", max(committed), detection + BEYOND_DETECTION_MS)
        yield row(case, "beyond detection p50", statistics.median(committed) - detection)
        yield row(case, "other side's last max", max(cut["last"] for cut in found))
        yield row(case, "other side frozen p50", statistics.median(cut["frozen"] for cut in found))


STEPS_MEASURED = 300


def ticks_of(pid):
    """Seconds of processor time of one process."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def own_loop(build):
    """Processor seconds of the control plane and of all for each step, and the median time of a step in milliseconds, of 8
    workers on 2 agents."""
    training = Training(build, steps=STEPS_MEASURED)
    try:
        # From the first step on; what forming the view took is not a step's.
        before, began = sum(ticks_of(agent.pid) for agent in training.agents.values()), training.newest_version()
        after, ended = before, began
        while training.newest_version() < STEPS_MEASURED - 5:
            after, ended = sum(ticks_of(agent.pid) for agent in training.agents.values()), training.newest_version()
            time.sleep(0.2)
        for agent in training.agents.values():
            agent.wait(PATIENCE)
        control = every = 0.0
        for path in (training.folder / "updates").iterdir():
            for line in path.read_text().splitlines():
                if line.startswith("cpu "):
                    threads, whole, steps = (int(word) for word in line.split()[1:])
                    control += threads / 1e9 / steps
                    every += whole / 1e9 / steps
        of_agents = (after - before) / (ended - began)
        moments = sorted(max(at for at, _ in found) for versions in training.read_updates().values() for found in versions.values())
        return control + of_agents, every + of_agents, statistics.median(gaps_of(moments))
    finally:
        training.close()


def mpi_loop(build):
    """The median time in milliseconds of a step with MPI_Allreduce, or None where there is no Open MPI."""
    program = build / "bin" / "bench_overhead_openmpi"
    if not program.exists():
        return None
    done = subprocess.run(["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-np", str(2 * WORKERS), str(program),
                           str(UPDATED_BYTES), str(SLEEP_MS), str(STEPS_MEASURED)], capture_output=True, text=True, timeout=PATIENCE)
    return int(done.stdout) / 1e6


def overhead(build, rounds):
    ours, peers = [], []
    for number in range(rounds):
        for turn in (0, 1) if number % 2 == 0 else (1, 0):
            if turn == 0:
                ours.append(own_loop(build))
            elif (peer := mpi_loop(build)) is not None:
                peers.append(peer)
    control, step = statistics.median(one[0] for one in ours), statistics.median(one[2] for one in ours)
    bound = 0.005 * SLEEP_MS
    case = f"{2 * WORKERS} workers on 2 agents, 1 MiB"
    yield dict(row(case, "control CPU/worker", control * 1e3 / (2 * WORKERS), bound), bench="overhead",
               ours=round(control * 1e3 / (2 * WORKERS), 4), of_bound=round(bound / (control * 1e3 / (2 * WORKERS)), 2))
    peer = statistics.median(peers) if peers else None
    yield dict(row(case, "step", step, None, "MPI_Allreduce, one host" if peers else "no Open MPI", peer), bench="overhead")
