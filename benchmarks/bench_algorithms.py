"""all_reduce between two hosts (two_hosts.py), two ranks on each: chosen by the cost model, beside sizes fixed in code and each
algorithm throughout, which take turns. The peers are the fixed sizes and the algorithms, the best of which counts; the case's
bound is the plain stream of network.cpp."""
import json
import statistics
import sys
from pathlib import Path

from bench_network import KIB, MIB, play, row, size_text
from two_hosts import ADDRESSES, DEVICE, HOSTS, LINKS, Refused, join_hosts, on_host, rows_of_sandbox, set_link

ALGORITHMS = ("one-shot", "direct", "recursive doubling", "ring", "hierarchical")
SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB)
RANKS = 4
TIMED_LINKS = ("unthrottled", "1 Gbit/s")


def algorithms(build, rounds):
    try:
        yield from rows_of_sandbox(__file__, build.resolve(), rounds)
    except Refused as refused:
        yield {**row("two hosts", "", None, None, {f"not measured: {refused}": None}), "bench": "algorithms"}


def competitors(build):
    """NAME=COMMAND of each rank."""
    program = build / "bin" / "bench_network"
    found = []
    for rank in range(RANKS):
        host = HOSTS[rank * len(HOSTS) // RANKS]
        # UCX takes two namespaces of one machine for one host, and would meet the other on the loopback device.
        ours = f"=env UCX_NET_DEVICES={DEVICE} "
        found.append("fixed" + ours + on_host(host, program, "muster", rank, RANKS))
        found += [name + ours + on_host(host, program, "algorithm", name, rank, RANKS) for name in ("model", *ALGORITHMS)]
        found.append("link=" + on_host(host, program, "link", rank, RANKS, ADDRESSES["b"]))
    return found


def main():
    build, rounds = Path(sys.argv[1]), int(sys.argv[2])
    join_hosts()
    for link in TIMED_LINKS:
        set_link(LINKS[link])
        times, _ = play(build, RANKS, rounds, [f"all_reduce:{size}" for size in SIZES], competitors(build))
        for (op, size), found in times.items():
            middle = {name: statistics.median(values) for name, values in found.items()}
            ours, bound = middle.pop("model"), middle.pop("link")
            case = f"{op} {size_text(size)}, 2 hosts × {RANKS // len(HOSTS)}, {link}"
            print(json.dumps({**row(case, "latency", ours, bound, middle), "bench": "algorithms"}), flush=True)


if __name__ == "__main__":
    main()
