"""Collectives between two hosts: network namespaces joined by a veth pair, as fast as it goes and throttled on both ends;
one and two ranks on each host. Beside Open MPI over TCP, MPICH over UCX's TCP and, where a Python has torch, Gloo. The bound
is a plain TCP stream of the bytes that must be moved (network.cpp); it takes turns with the others. Muster's compressed
all_reduce beside its float32 one, its bound the stream's time for that part of the bytes. And what it gains a training to reduce its gradients in buckets, while the rest is computed.

It makes a sandbox for itself, so it needs root or user namespaces; where it cannot have them one row says so."""
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from torch_python import not_measured, torch_python
from two_hosts import ADDRESSES, DEVICE, HOSTS, LINKS, STEP_LINE, Refused, join_hosts, on_host, rows_of_sandbox, set_link, train

KIB, MIB = 1 << 10, 1 << 20
GLOO_PORT = 29400
# As a launch agent of an MPI: starts a command on the host whose address it is given, under a name that differs from the
# other's, since MPIs take hosts of one name for one host.
AGENT = """#!/bin/sh
case $1 in -*) shift ;; esac
address=$1; shift
case $address in {a}) host=a ;; *) host=b ;; esac
exec unshare --uts sh -c "hostname $host; exec ip netns exec $host sh -c '$*'"
"""


def network(build, rounds):
    try:
        yield from rows_of_sandbox(__file__, build.resolve(), rounds, torch_python()[0] or "")
    except Refused as refused:
        yield row("two hosts", "", None, None, {f"not measured: {refused}": None})
        return
    if not torch_python()[0]:
        yield row("2 hosts", "latency", None, None, {not_measured("Gloo"): None})


def row(case, metric, ours, bound, peers, unit="ms"):
    """`peers`: name → value. The best one counts, and all are told."""
    known = {name: value for name, value in peers.items() if value is not None}
    best = min(known, key=known.get) if known else next(iter(peers), None)
    value = known.get(best)
    return {"bench": "network", "case": case, "metric": metric, "unit": unit, "ours": rounded(ours), "peer": best,
            "peer_value": rounded(value), "ratio": round(value / ours, 2) if value else None, "bound": rounded(bound),
            "of_bound": round(bound / ours, 3) if bound else None,
            "peers": {name: rounded(value) for name, value in known.items()}}


def rounded(value):
    return None if value is None else float(f"{value:.4g}")


# ---- collectives

def cases_for(link):
    sizes = [4 * KIB, 64 * KIB, MIB, 4 * MIB, 16 * MIB]
    if link != "100 Mbit/s":  # there it would take a quarter of an hour, and say the same as 16 MiB
        sizes.append(64 * MIB)
    return [f"all_reduce:{size}" for size in sizes] + \
           [f"{op}:{size}" for op in ("reduce_scatter", "all_gather", "broadcast") for size in (MIB, 16 * MIB)]


# Of the compressed all_reduce: bytes of an element, and how many times as fast as float32 it is asked to be where the link
# is what takes the time.
CODECS = {"bf16": (2, None), "int8": (1 + 4 / 256, 3.5), "int4": (1 / 2 + 2 / 128, 6.5), "1-bit": (1 / 8 + 4 / 1024, 20),
          "topk": (11 * 4 / 1024, 40)}
# PowerSGD of a matrix of 4096 columns, as many rows: it sends both factors once each, as float32.
LOW_RANKS = {"rank4": (4 * 4 * 2 / 4096, None)}
CODECS |= LOW_RANKS
OPEN = "auto"  # to be chosen by measurement
COMPRESSED_BYTES = 64 * MIB
COMPRESSED_LINKS = ("1 Gbit/s", "100 Mbit/s")


def own_competitors(build, ranks, codecs=()):
    """NAME=COMMAND of Muster, also with the codecs, and of the bound."""
    program = build / "bin" / "bench_network"
    found = []
    for rank in range(ranks):
        host = HOSTS[rank * len(HOSTS) // ranks]
        # UCX takes two namespaces of one machine for one host, and would meet the other on the loopback device.
        ours = f"=env UCX_NET_DEVICES={DEVICE} "
        found.append("muster" + ours + on_host(host, program, "muster", rank, ranks))
        found += [codec + ours + on_host(host, program, "compressed", codec, rank, ranks) for codec in codecs]
        found.append("link=" + on_host(host, program, "link", rank, ranks, ADDRESSES["b"]))
    return found


def competitors(build, torch, ranks, folder):
    """NAME=COMMAND of each, in any order."""
    found = own_competitors(build, ranks)
    for rank in range(ranks):
        host = HOSTS[rank * len(HOSTS) // ranks]
        if torch:
            gloo = [torch, Path(__file__).parent / "gloo_rank.py", build / "lib" / "libbench_participant.so", rank, ranks,
                    ADDRESSES["a"], GLOO_PORT]
            found.append(f"Gloo=env OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME={DEVICE} " + on_host(host, *gloo))
    agent = folder / "agent"
    agent.write_text(AGENT.format(**ADDRESSES))
    agent.chmod(0o755)
    slots = ",".join(f"{address}:{ranks // len(HOSTS)}" for address in ADDRESSES.values())
    mpis = {"openmpi": f"mpirun.openmpi --allow-run-as-root --oversubscribe --bind-to none --host {slots} -np {ranks} "
                       f"--mca plm_rsh_agent {agent} --mca pml ob1 --mca btl tcp,self,vader --mca btl_tcp_if_include {DEVICE} "
                       f"--mca oob_tcp_if_include {DEVICE}",
            # With UCX's shared memory the two hosts would not need the link.
            "mpich": f"mpirun.mpich -launcher ssh -launcher-exec {agent} -hosts {slots} -iface {DEVICE} -np {ranks} "
                     f"-genv UCX_NET_DEVICES {DEVICE} -genv UCX_TLS tcp,self"}
    for name, launch in mpis.items():
        if (program := build / "bin" / f"bench_collectives_{name}").exists():
            found.append(f"{name}=ip netns exec a {launch} {program}")
    return found


def play(build, ranks, rounds, cases, taking_turns):
    """Milliseconds, by case and competitor; and the operations that competitors do not have."""
    director = subprocess.Popen([str(build / "bin" / "bench_network"), "direct", str(ranks), str(rounds), *cases, *taking_turns],
                                stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    times, lacking = {}, []
    for line in director.stdout:
        if not line.startswith('{"op"'):  # an MPI's own words
            print(line, end="", file=sys.stderr)
            continue
        turn = json.loads(line)
        if "lacking" in turn:
            lacking.append((turn["op"], turn["competitor"]))
            continue
        if turn["wrong"]:
            raise RuntimeError(f"{turn['competitor']} computed a wrong {turn['op']} of {turn['bytes']} B")
        found = times.setdefault((turn["op"], turn["bytes"]), {}).setdefault(turn["competitor"], [])
        found.extend(us / 1000 for us in turn["us"])
    if director.wait() != 0:
        raise RuntimeError(f"bench_network ended with {director.returncode}")
    return times, lacking


def size_text(size):
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def collectives_rows(build, torch, rounds, folder):
    for link, limits in LINKS.items():
        set_link(limits)
        for ranks in (len(HOSTS), 2 * len(HOSTS)):
            times, lacking = play(build, ranks, rounds, cases_for(link), competitors(build, torch, ranks, folder))
            for (op, size), found in times.items():
                middle = {name: statistics.median(values) for name, values in found.items()}
                ours, bound = middle.pop("muster"), middle.pop("link")
                yield row(f"{op} {size_text(size)}, 2 hosts × {ranks // len(HOSTS)}, {link}", "latency", ours, bound, middle)
            for op, name in lacking:
                yield row(f"{op}, 2 hosts × {ranks // len(HOSTS)}, {link}", "latency", None, None, {f"{name} has none": None})


def compressed_rows(build, rounds):
    """The peer is Muster's float32."""
    ranks = len(HOSTS)
    for link in COMPRESSED_LINKS:
        set_link(LINKS[link])
        times, _ = play(build, ranks, rounds, [f"all_reduce:{COMPRESSED_BYTES}"], own_competitors(build, ranks, [*CODECS, OPEN]))
        middle = {name: statistics.median(values) for name, values in times["all_reduce", COMPRESSED_BYTES].items()}
        for codec, (element_bytes, asked) in CODECS.items():
            bound = middle["link"] * element_bytes / 4
            wanted = f" (asked {asked}×)" if asked else ""
            yield row(f"all_reduce {size_text(COMPRESSED_BYTES)}, {codec}{wanted}, 2 hosts × 1, {link}", "latency", middle[codec],
                      bound, {"float32": middle["muster"]})
        # It may lose no more than 40 % of the values' norm, which 1-bit and topk do; and it is for codecs.
        yield row(f"all_reduce {size_text(COMPRESSED_BYTES)}, codec left open, 2 hosts × 1, {link}", "latency", middle[OPEN], None,
                  {codec: middle[codec] for codec in CODECS if codec not in ("1-bit", "topk", *LOW_RANKS)})


# ---- a training

TRAINED_LINK = "100 Mbit/s"
STEPS, SKIPPED = 8, 2  # the first steps also find out how fast the machine is
SEQUENCES, CONTEXT = 8, 64
# 12 MiB of gradients, and one microbatch for each rank, whose backward pass takes about as long as the link for them.
MODEL = ["--layers", 4, "--width", 256, "--heads", 4, "--context", CONTEXT, "--sequences", SEQUENCES, "--microbatches", 2,
         "--lanes", 2, "--steps", STEPS, "--report-every", 1, "--sample-bytes", 1]
BUCKET_KIB, WHOLE_KIB = 1024, 1 << 20


def step_ms(build, bucket_kib):
    """Of a training on both hosts, the median."""
    lines = train(build, [*MODEL, "--bucket-kib", bucket_kib])
    bytes_of_step = 2 * SEQUENCES * CONTEXT
    steps = [found for line in lines if (found := STEP_LINE.search(line))]
    return statistics.median(1000 * bytes_of_step / int(found[8]) for found in steps[SKIPPED:])


def training_row(build, rounds):
    set_link(LINKS[TRAINED_LINK])
    times = {BUCKET_KIB: [], WHOLE_KIB: []}
    for number in range(rounds):
        for bucket in sorted(times, reverse=number % 2 == 1):
            times[bucket].append(step_ms(build, bucket))
    ours, whole = (statistics.median(times[bucket]) for bucket in (BUCKET_KIB, WHOLE_KIB))
    return row(f"gpt step, overlapped vs not, 2 hosts × 1, {TRAINED_LINK}", "step", ours, None, {"one bucket": whole})


def main():
    build, rounds, torch = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    join_hosts()
    folder = Path(tempfile.mkdtemp(prefix="muster-bench-"))
    try:
        for one in collectives_rows(build, torch, rounds, folder):
            print(json.dumps(one), flush=True)
        for one in compressed_rows(build, rounds):
            print(json.dumps(one), flush=True)
        print(json.dumps(training_row(build, rounds)), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
