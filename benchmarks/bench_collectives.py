"""Collectives beside two MPIs and the memory's bound: competitors take turns, and times are told apart by regime (see
turns.h and collectives.cpp): medians, up to 1 KiB means."""
import json
import statistics
import subprocess

KIB, MIB = 1 << 10, 1 << 20
MPI_PEERS = {"openmpi": "mpirun.openmpi --allow-run-as-root --oversubscribe --bind-to none -np",
             "mpich": "mpirun.mpich -np"}
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
        yield from rows_of(play(build, ranks, rounds, cases))


def play(build, ranks, rounds, cases):
    """The director's lines, by case and regime and competitor: all times in microseconds."""
    peers = [f"{name}={launch} {ranks} {build}/bin/bench_collectives_{name}" for name, launch in MPI_PEERS.items()
             if (build / "bin" / f"bench_collectives_{name}").exists()]
    director = subprocess.Popen([str(build / "bin" / "bench_collectives"), str(ranks), str(rounds), *cases, *peers],
                                stdout=subprocess.PIPE, text=True)
    times = {}
    for line in director.stdout:
        turn = json.loads(line)
        if turn["wrong"]:
            raise RuntimeError(f"{turn['competitor']} computed a wrong {turn['op']} of {turn['bytes']} B")
        case = (turn["op"], turn["bytes"], turn["owned"], turn["flushed"], turn["ranks"])
        times.setdefault((case, turn["regime"]), {}).setdefault(turn["competitor"], []).extend(turn["us"])
    if director.wait() != 0:
        raise RuntimeError(f"bench_collectives ended with {director.returncode}")
    return times


def middle(size, values):
    return statistics.mean(values) if size <= LATENCY_BYTES else statistics.median(values)


def rows_of(times):
    for (case, regime), found in times.items():
        op, size, owned, flushed, ranks = case
        if "muster" not in found:
            continue
        # Peers have no buffers of their own: theirs were timed in the case without.
        others = {**times.get(((op, size, 0, flushed, ranks), regime), {}), **found}
        peers = {name: middle(size, others[name]) for name in MPI_PEERS if name in others}
        best = min(peers, key=peers.get, default=None)
        ours = middle(size, found["muster"])
        copies = [statistics.median(others[name]) for name in ("copy", "copy, streaming") if name in others]
        bound = min(copies, default=None)
        kind = "owned" if owned else "foreign"
        yield {"bench": "collectives", "case": f"{op} float32 {kind} p={ranks} {size} B{' flushed' if flushed else ''} {regime}",
               "metric": "latency", "unit": "us", "ours": round(ours, 2), "ours_p99": round(p99(found["muster"]), 2),
               "peer": best, "peer_value": round(peers[best], 2) if best else None,
               "ratio": round(peers[best] / ours, 3) if best else None,
               "bound": round(bound, 2) if bound else None, "of_bound": round(bound / ours, 3) if bound else None}


def p99(values):
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]
