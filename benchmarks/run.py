#!/usr/bin/env python3
"""Runs the benchmarks for scripts/bench: competitors interleaved in rounds, medians over the rounds. Timings on small
virtual machines are noisy: ratios of one run mean something, absolute values of two runs do not."""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 5


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return float(done.stdout.split()[-1])


def all_reduce(build):
    mpi = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np"]
    for ranks in (2, 4):
        for size in (64, 4096, 65536, 1 << 20, 16 << 20):
            ours, theirs = [], []
            for _ in range(ROUNDS):
                ours.append(run([build / "bin" / "bench_all_reduce", ranks, size]) / 1e3)
                theirs.append(run([*mpi, ranks, build / "bin" / "bench_all_reduce_mpi", size]) / 1e3)
            mine, peer = statistics.median(ours), statistics.median(theirs)
            yield {"bench": "all_reduce", "case": f"float32 sum foreign p={ranks} {size} B", "metric": "latency", "unit": "us",
                   "ours": round(mine, 2), "peer": version_of_mpi(), "peer_value": round(peer, 2),
                   "ratio": round(peer / mine, 3), "bound": None, "of_bound": None}


def version_of_mpi():
    return subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout.splitlines()[0].replace(
        "mpirun (Open MPI)", "Open MPI")


BENCHES = {"all_reduce": all_reduce}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        parser.error(f"unknown benchmark '{unknown[0]}'; there are: {', '.join(BENCHES)}")
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}")
    print(f"{'bench':<12}{'case':<38}{'metric':<10}{'ours':>12}{'peer':>12}  {'ratio':>6}  peer's name")
    lines = []
    for name in options.names or BENCHES:
        for row in BENCHES[name](options.build):
            print(f"{row['bench']:<12}{row['case']:<38}{row['metric'] + ' ' + row['unit']:<10}{row['ours']:>12}"
                  f"{row['peer_value']:>12}  {row['ratio']:>6}  {row['peer']}", flush=True)
            lines.append(json.dumps(row))
    if options.json:
        options.json.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
