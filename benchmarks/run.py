#!/usr/bin/env python3
"""Runs the benchmarks for scripts/bench, each a module beside this file that yields rows. Timings on small virtual
machines are noisy: ratios of one run mean something, absolute values of two runs do not."""
import argparse
import functools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from bench_algorithms import algorithms
from bench_checkpoint import checkpoint
from bench_codecs import codecs
from bench_collectives import collectives
from bench_gpu import gpu
from bench_leader import leader
from bench_network import network
from bench_preemption import preemption
from bench_recovery import overhead, recovery
from bench_scale import scale
from bench_training import training
from compare import lines as lines_of_moves, moves, read_rows
from torch_python import torch_python

BENCHES = {"algorithms": algorithms, "checkpoint": checkpoint, "codecs": codecs, "collectives": collectives, "gpu": gpu, "leader": leader,
           "network": network, "overhead": overhead, "preemption": preemption, "recovery": recovery, "scale": scale,
           "training": training}
BASELINE = Path(__file__).parent / "baseline"
ROUNDS, ROUNDS_OF = 5, {"training": 3}


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def versions():
    """Of the peers: packages of the system, and the torch that is used."""
    packages = ["openmpi-bin", "mpich", "libhdf5-103-1", "libhdf5-openmpi-103-1", "libucx0", "libzstd1", "liblz4-1", "etcd-server",
                "python3-torch", "libgloo0"]
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}\\n", *packages], capture_output=True, text=True)
    python, said = torch_python()
    return [line for line in done.stdout.splitlines() if not line.endswith(" ")] + ([f"{said} ({python})"] if python else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--baseline", type=Path, nargs="?", const=BASELINE, help="of an earlier run, or a folder of such: print what moved")
    parser.add_argument("--picture", type=Path, help="for the curves of training, as SVG")
    parser.add_argument("--rounds", type=int,
                        help=f"of the competitors' turns, where they take turns: {ROUNDS}; seeds of training: {ROUNDS_OF['training']}")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        parser.error(f"unknown benchmark '{unknown[0]}'; there are: {', '.join(BENCHES)}")
    peers = ", ".join(versions()) or "none of them is installed"
    print(f"machine: {processor()}, {os.cpu_count()} cores, Linux {platform.release()}")
    print(f"peers: {peers}")
    print(f"{'bench':<12}{'case':<58}{'metric':<20}{'ours':>10}{'peer':>10}{'ratio':>7}{'of bound':>9}  peer")
    lines = [json.dumps({"machine": f"{processor()}, {os.cpu_count()} cores", "peers": peers})]
    benches = {**BENCHES, "training": functools.partial(training, picture_file=options.picture)}
    for name in options.names or BENCHES:
        for row in benches[name](options.build, options.rounds or ROUNDS_OF.get(name, ROUNDS)):
            text = {key: "-" if value is None else value for key, value in row.items()}
            others = [f"{name} {value}" for name, value in row.get("peers", {}).items() if name != row["peer"]]
            print(f"{text['bench']:<12}{text['case']:<58}{text['metric'] + ' ' + text['unit']:<20}{text['ours']:>10}"
                  f"{text['peer_value']:>10}{text['ratio']:>7}{text['of_bound']:>9}  {'; '.join([text['peer'], *others])}", flush=True)
            lines.append(json.dumps(row))
    if options.json:
        options.json.write_text("\n".join(lines) + "\n")
    if options.baseline:
        print_moves(options.baseline, lines)
    return 0


def print_moves(baseline, lines):
    files = sorted(baseline.glob("*.jsonl")) if baseline.is_dir() else [baseline]
    before = read_rows("".join(file.read_text() for file in files))
    print(f"moved since {baseline}, by a quarter or more:")
    for line in lines_of_moves(moves(before, read_rows("\n".join(lines)))):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
