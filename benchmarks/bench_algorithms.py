"""all_reduce between two hosts (two_hosts.py), two ranks on each, and all_reduce and broadcast between four and eight with one
rank each: chosen by the cost model, beside sizes fixed in code and each algorithm throughout, which take turns. The peers are
the fixed sizes and the algorithms, the best of which counts; the bound, of two hosts, is the plain stream of network.cpp."""
import json
import statistics
import sys
from pathlib import Path

from bench_network import KIB, MIB, play, row, size_text
from two_hosts import ADDRESSES, DEVICE, LINKS, MANY_HOSTS, Refused, join_hosts, on_host, rows_of_sandbox, set_link

SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB)
EVERY = {"all_reduce": ("one-shot", "direct", "recursive doubling", "ring", "hierarchical", "Rabenseifner", "double tree"),
         "broadcast": ("binomial", "double tree")}
# Hosts, ranks, and the links on which they are timed. Eight hosts of 1 Gbit/s are more than a small machine's cores carry.
WORLDS = {2: (4, ("unthrottled", "1 Gbit/s")), 4: (4, ("100 Mbit/s",)), 8: (8, ("unthrottled", "100 Mbit/s"))}
TIMED = {2: {"all_reduce": SIZES}, 4: {op: SIZES[:-1] for op in EVERY}, 8: {op: SIZES[:-1] for op in EVERY}}


def algorithms(build, rounds):
    for hosts in WORLDS:
        try:
            yield from rows_of_sandbox(__file__, build.resolve(), rounds, hosts)
        except Refused as refused:
            yield {**row(f"{hosts} hosts", "", None, None, {f"not measured: {refused}": None}), "bench": "algorithms"}


def competitors(build, op, hosts, ranks):
    """NAME=COMMAND of each rank."""
    program = build / "bin" / "bench_network"
    found = []
    for rank in range(ranks):
        host = hosts[rank * len(hosts) // ranks]
        # UCX takes two namespaces of one machine for one host, and would meet the other on the loopback device.
        ours = f"=env UCX_NET_DEVICES={DEVICE} "
        found.append("fixed" + ours + on_host(host, program, "muster", rank, ranks))
        # One rank on each host is no hierarchy.
        names = [name for name in EVERY[op] if name != "hierarchical" or len(hosts) < ranks]
        found += [name + ours + on_host(host, program, "algorithm", name, rank, ranks) for name in ("model", *names)]
        if len(hosts) == 2:
            found.append("link=" + on_host(host, program, "link", rank, ranks, ADDRESSES["b"]))
    return found


def main():
    build, rounds, hosts = Path(sys.argv[1]), int(sys.argv[2]), MANY_HOSTS[:int(sys.argv[3])]
    ranks, links = WORLDS[len(hosts)]
    join_hosts(hosts)
    for link in links:
        set_link(LINKS[link], hosts)
        for op, sizes in TIMED[len(hosts)].items():
            cases = [f"{op}:{size}" for size in sizes]
            times, _ = play(build, f"{ranks}/{len(hosts)}", rounds, cases, competitors(build, op, hosts, ranks))
            for (op, size), found in times.items():
                middle = {name: statistics.median(values) for name, values in found.items()}
                ours, bound = middle.pop("model"), middle.pop("link", None)
                case = f"{op} {size_text(size)}, {len(hosts)} hosts × {ranks // len(hosts)}, {link}"
                print(json.dumps({**row(case, "latency", ours, bound, middle), "bench": "algorithms"}), flush=True)


if __name__ == "__main__":
    main()
