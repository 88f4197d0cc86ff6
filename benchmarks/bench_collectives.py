"""Collectives beside two MPIs, Gloo (by torch) and the memory's bound: competitors take turns, and times are told apart by
regime (see turns.h and collectives.cpp): medians, up to 1 KiB means. What a competitor does not have is told in a row."""
import json
import socket
import statistics
import subprocess
from pathlib import Path

from torch_python import not_measured, torch_python

KIB, MIB = 1 << 10, 1 << 20
MPI_PEERS = {"openmpi": "mpirun.openmpi --allow-run-as-root --oversubscribe --bind-to none -np",
             "mpich": "mpirun.mpich -np"}
PEERS = (*MPI_PEERS, "Gloo")
LATENCY_BYTES = 1024  # up to here samples are means of back-to-back operations; see turns.h


def collectives(build, rounds):
    sizes = (4, 64, KIB, 4 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB)
    cases = ["barrier:0"]
    for size in sizes:
        cases.append(f"all_reduce:{size}")
        if size > LATENCY_BYTES:
            cases.append(f"all_reduce:{size}:owned")
    for op in ("reduce_scatter", "all_gather", "broadcast"):
        cases += [f"{op}:{size}" for size in (MIB, 16 * MIB)]
    cases += ["all_reduce:4194304:flushed", "all_reduce:4194304:owned:flushed"]
    for ranks in (2, 4):
        times, lacking = play(build, ranks, rounds, cases)
        yield from rows_of(times)
        for op, name in lacking:
            yield row(f"{op} float32 p={ranks}", None, f"{name} has none")
    if not torch_python()[0]:
        yield row("all", None, not_measured("Gloo"))


def row(case, ours, peer, peer_value=None, bound=None, **more):
    return {"bench": "collectives", "case": case, "metric": "latency", "unit": "us", "ours": ours and round(ours, 2), "peer": peer,
            "peer_value": peer_value and round(peer_value, 2), "ratio": round(peer_value / ours, 3) if peer_value else None,
            "bound": bound and round(bound, 2), "of_bound": round(bound / ours, 3) if bound else None, **more}


def gloo(build, ranks):
    """NAME=COMMAND of each rank."""
    python, _ = torch_python()
    if not python:
        return []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script, library = Path(__file__).parent / "gloo_rank.py", build / "lib" / "libbench_participant.so"
    return [f"Gloo=env OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo {python} {script} {library} {rank} {ranks} 127.0.0.1 {port}"
            for rank in range(ranks)]


def play(build, ranks, rounds, cases):
    """The director's lines, by case and regime and competitor: all times in microseconds; and the operations that competitors
    do not have."""
    peers = [f"{name}={launch} {ranks} {build}/bin/bench_collectives_{name}" for name, launch in MPI_PEERS.items()
             if (build / "bin" / f"bench_collectives_{name}").exists()]
    director = subprocess.Popen([str(build / "bin" / "bench_collectives"), str(ranks), str(rounds), *cases, *peers,
                                 *gloo(build.resolve(), ranks)], stdout=subprocess.PIPE, text=True)
    times, lacking = {}, []
    for line in director.stdout:
        turn = json.loads(line)
        if "lacking" in turn:
            lacking.append((turn["op"], turn["competitor"]))
            continue
        if turn["wrong"]:
            raise RuntimeError(f"{turn['competitor']} computed a wrong {turn['op']} of {turn['bytes']} B")
        case = (turn["op"], turn["bytes"], turn["owned"], turn["flushed"], turn["ranks"])
        times.setdefault((case, turn["regime"]), {}).setdefault(turn["competitor"], []).extend(turn["us"])
    if director.wait() != 0:
        raise RuntimeError(f"bench_collectives ended with {director.returncode}")
    return times, lacking


def middle(size, values):
    return statistics.mean(values) if size <= LATENCY_BYTES else statistics.median(values)


def rows_of(times):
    for (case, regime), found in times.items():
        op, size, owned, flushed, ranks = case
        if "muster" not in found:
            continue
        # Peers have no buffers of their own: theirs were timed in the case without.
        others = {**times.get(((op, size, 0, flushed, ranks), regime), {}), **found}
        peers = {name: middle(size, others[name]) for name in PEERS if name in others}
        best = min(peers, key=peers.get, default=None)
        ours = middle(size, found["muster"])
        copies = [statistics.median(others[name]) for name in ("copy", "copy, streaming") if name in others]
        bound = min(copies, default=None)
        kind = "owned" if owned else "foreign"
        yield row(f"{op} float32 {kind} p={ranks} {size} B{' flushed' if flushed else ''} {regime}", ours, best, peers.get(best), bound,
                  ours_p99=round(p99(found["muster"]), 2), peers={name: round(value, 2) for name, value in peers.items()})


def p99(values):
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]
