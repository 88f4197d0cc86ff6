#!/usr/bin/env python3
"""HPC Challenge, a program of MPI that knows nothing of Muster, as Debian has it: on 2 and 4 ranks, without and with
libmuster_pmpi.so. HPL, PTRANS, RandomAccess and FFT check their results themselves; what they checked must be all
right, and with the library Muster must have done what they ask of it."""
import argparse
import os
import re
import shutil
import signal
import subprocess
import sys

from rig import Failure, Job, run_tests

# All that hpcc 1.5.0 calls of what the library does.
OPERATIONS = {"Allreduce", "Reduce", "Bcast", "Barrier", "Gather", "Alltoall"}

# The lines of hpccinf.txt have fixed places. Small: HPL of 200 × 200, the others by its memory; PTRANS also of 160.
INPUT = """HPLinpack benchmark input file
by hpcc.py
HPL.out      output file name (if any)
8            device out
1            # of problems sizes (N)
200          Ns
1            # of NBs
32           NBs
0            PMAP process mapping
1            # of process grids (P x Q)
{rows}            Ps
{columns}            Qs
16.0         threshold
1            # of panel fact
2            PFACTs
1            # of recursive stopping criterium
4            NBMINs
1            # of panels in recursion
2            NDIVs
1            # of recursive panel fact.
1            RFACTs
1            # of broadcast
1            BCASTs
1            # of lookahead depth
1            DEPTHs
2            SWAP
64           swapping threshold
0            L1 in
0            U  in
1            Equilibration
8            memory alignment
##### This line is ignored.
1            Number of additional problem sizes for PTRANS
160          values of N
1            number of additional blocking sizes for PTRANS
20           values of NB
"""

# Each must be found that often, by the number of ranks. PTRANS does five tests for each of two sizes and blockings.
CHECKS = {
    r"\|\|Ax-b\|\|.* \.+ PASSED$": 1,
    r"^ +1 tests completed and passed residual checks,": 1,
    r"^ +0 tests completed and failed residual checks,": 1,
    r"^ +0 tests skipped because of illegal input values\.": 2,
    r"^ +20 tests completed and passed residual checks\.": 1,
    r"^ +0 tests completed and failed residual checks\.": 1,
    r"^MPIRandomAccess_Errors=0$": 1,
    r"^MPIRandomAccess_LCG_Errors=0$": 1,
    r"^MPIFFT_maxErr=[0-9.]+e-1[3-9]$": 1,
    r"^Success=1$": 1,
    r"^End of HPC Challenge tests\.$": 1,
}


class Hpcc:
    def __init__(self, build):
        self.job = Job(build, "hpcc")

    def run(self, ranks, preload):
        folder = self.job.folder / f"{ranks}-{'preloaded' if preload else 'plain'}"
        folder.mkdir()
        (folder / "hpccinf.txt").write_text(INPUT.format(rows=1 if ranks < 4 else 2, columns=2))
        command = ["mpirun", "-np", str(ranks), "--oversubscribe"] + (["--allow-run-as-root"] if os.geteuid() == 0 else [])
        if preload:
            command += ["-x", f"LD_PRELOAD={self.job.build / 'lib' / 'libmuster_pmpi.so'}", "-x", "MUSTER_PMPI_REPORT=1"]
        environment = {**os.environ, "MUSTER_MODULE_PATH": str(self.job.build / "lib")}
        process = subprocess.Popen([*command, "hpcc"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   start_new_session=True, env=environment)
        try:
            said, _ = process.communicate(timeout=80)
        except subprocess.TimeoutExpired:
            raise Failure(f"hpcc on {ranks} ranks did not end within 80 s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode != 0:
            raise Failure(f"hpcc ended with {process.returncode}: {said[-3000:]}")
        self.check((folder / "hpccoutf.txt").read_text(errors="replace"))
        return said

    def check(self, output):
        for pattern, count in CHECKS.items():
            found = re.findall(pattern, output, re.MULTILINE)
            if len(found) != count:
                raise Failure(f"'{pattern}' is {len(found)} times in hpccoutf.txt, not {count}: {output[-6000:]}")
        if "FAILED" in output:
            raise Failure(f"hpccoutf.txt says FAILED: {output[output.index('FAILED') - 1000:][:2000]}")

    def plain(self, ranks):
        self.run(ranks, False)

    def preloaded(self, ranks):
        said = self.run(ranks, True)
        reports = re.findall(r"^muster: rank (\d+) did (.*)$", said, re.MULTILINE)
        if sorted(int(rank) for rank, _ in reports) != list(range(ranks)):
            raise Failure(f"not every rank reported: {said[-3000:]}")
        for rank, done in sorted(reports):
            print(f"hpcc: by Muster, rank {rank} of {ranks}: {done}", flush=True)
            counts = {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", done)}
            if missing := sorted(OPERATIONS - counts.keys()):
                raise Failure(f"rank {rank}: Muster did none of {', '.join(missing)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    options = parser.parse_args()
    for program, package in (("mpirun", "openmpi-bin"), ("hpcc", "hpcc")):
        if not shutil.which(program):
            print(f"hpcc: skipped, {program} is missing; install {package}")
            return 77
    test = Hpcc(options.build)
    if not (test.job.build / "lib" / "libmuster_pmpi.so").exists():
        print("hpcc: skipped, libmuster_pmpi.so was not built; install libopenmpi-dev and configure again")
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        return run_tests([(f"{how} on {ranks} ranks", lambda run=run, ranks=ranks: run(ranks))
                          for ranks in (2, 4) for how, run in (("plain", test.plain), ("with the library", test.preloaded))],
                         "hpcc")
    finally:
        test.job.close()


if __name__ == "__main__":
    sys.exit(main())
