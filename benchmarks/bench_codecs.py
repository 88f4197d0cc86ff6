"""The codecs' rows of scripts/bench, on one core, with values in memory and in the cache: medians over the rounds of one
program, which measures the roof in each, also times memcpy, zstd and lz4, and takes turns with PyTorch's casts and int8
quantisation (codecs_torch.py)."""
import statistics
import subprocess
import tempfile
from pathlib import Path

from torch_python import not_measured, torch_python

TURNS, ROUNDS_OF_A_TURN = 3, 3
MEMORY_MIB, CACHE_MIB = 64, 1
TORCH_SCRIPT = Path(__file__).parent / "codecs_torch.py"


def lines_of(command, output=subprocess.PIPE):
    """The fields of what a program printed, unless that went elsewhere."""
    done = subprocess.run([str(word) for word in command], stdout=output, stderr=subprocess.PIPE, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return [line.split("|") for line in (done.stdout or b"").decode().splitlines()]


def measured(build, mib):
    """{case: (median GB/s of float32, median part of the roof)} in the order of the program, and {case: {way: median GB/s of
    PyTorch}}."""
    program, python = build / "bin" / "bench_codecs", torch_python()[0]
    ours, torchs = {}, {}
    with tempfile.NamedTemporaryFile() as values:
        lines_of([program, "values", mib], values)
        for _ in range(TURNS):
            for case, speed, part in lines_of([program, ROUNDS_OF_A_TURN, mib]):
                ours.setdefault(case, []).append((float(speed), float(part)))
            for case, way, speed in lines_of([python, TORCH_SCRIPT, ROUNDS_OF_A_TURN, values.name]) if python else ():
                torchs.setdefault(case, {}).setdefault(way, []).append(float(speed))
    return ({case: tuple(statistics.median(column) for column in zip(*samples)) for case, samples in ours.items()},
            {case: {way: statistics.median(speeds) for way, speeds in ways.items()} for case, ways in torchs.items()})


def row(case, ours=None, peer=None, peer_value=None, bound=None, of_bound=None, peers=None):
    return {"bench": "codecs", "case": case, "metric": "float32", "unit": "GB/s", "ours": ours and round(ours, 2), "peer": peer,
            "peer_value": peer_value and round(peer_value, 2), "ratio": round(ours / peer_value, 3) if peer_value else None,
            "bound": bound and round(bound, 2), "of_bound": of_bound and round(of_bound, 3),
            "peers": {name: round(value, 2) for name, value in (peers or {}).items()}}


def codecs(build, rounds):
    for mib, place in ((MEMORY_MIB, "memory"), (CACHE_MIB, "cache")):
        results, torchs = measured(build, mib)
        for case, (speed, part) in results.items():
            # In the cache there is no roof of memory; of a peer's program it is not known what it moves.
            bounded = place == "memory" and part > 0
            peers = torchs.get(case, {})
            best = max(peers, key=peers.get, default="memcpy")
            peers = {**peers, "memcpy": results["memcpy"][0]}
            yield row(f"{case}, {place}", speed, best, peers[best], results["roof"][0] if bounded else None,
                      part if bounded else None, peers)
    if not torch_python()[0]:
        yield row("casts and int8", peer=not_measured("PyTorch"))
