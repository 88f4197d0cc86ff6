#!/usr/bin/env python3
"""Communicators under a real mpirun: without MPI (over PMIx), and of the communicators of an MPI program. Every
operation against a reference, and what happens when a rank dies, stops, differs, leaves, or does not come."""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys

from rig import Failure, Job, run_tests

END = re.compile(r"^rank (\d+) of (\d+): (\w+) blames \[([\d,]*)\] after ([\d.]+) s over ([^:]+): (.*)$", re.MULTILINE)
NETWORK = {"MUSTER_SHARED_MEMORY": "0"}


class Comm:
    def __init__(self, build):
        self.job = Job(build, "comm")
        self.environment = {**os.environ, "MUSTER_MODULE_PATH": str(self.job.build / "lib")}

    def run(self, ranks, program, mode, extra=None, expect=0, survive=False):
        """What the ranks said. With `survive` mpirun leaves the others alone when one dies."""
        launcher = ["mpirun", "-np", str(ranks), "--oversubscribe"]
        launcher += ["--allow-run-as-root"] if os.geteuid() == 0 else []
        launcher += ["--enable-recovery"] if survive else []
        return self.finish([*launcher, str(self.job.build / "bin" / program), mode], extra, expect)

    def finish(self, command, extra=None, expect=0, limit=200):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   start_new_session=True, env={**self.environment, **(extra or {})})
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise Failure(f"{' '.join(command[-2:])} did not end within {limit} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if "FAILED" in said or (expect is not None and process.returncode != expect):
            raise Failure(f"{' '.join(command[-2:])} ended with {process.returncode}: {said[-3000:]}")
        return said

    def require(self, said, pattern, count):
        found = re.findall(pattern, said)
        if len(found) != count:
            raise Failure(f"'{pattern}' was said {len(found)} times, not {count}: {said[-3000:]}")

    def require_ends(self, said, ranks, survivors, status, blamed, sentence, within):
        """All survivors ended alike, soon, and name the culprit."""
        ends = [end for end in END.findall(said) if int(end[0]) in survivors]  # a frozen one may be thawed
        if sorted(int(end[0]) for end in ends) != survivors:
            raise Failure(f"ends of ranks {[end[0] for end in ends]}, not {survivors}: {said[-3000:]}")
        for rank, size, end, blames, after, _, why in ends:
            if end != status or int(size) != ranks or not re.search(sentence, why) or float(after) > within:
                raise Failure(f"rank {rank} of {size} ended with {end} after {after} s: {why}")
            if blamed is not None and blames != blamed:
                raise Failure(f"rank {rank} blames [{blames}], not [{blamed}]: {why}")

    # ---- without MPI

    def alone(self):
        said = self.finish([str(self.job.build / "bin" / "comm_pmix"), "results"])
        self.require(said, r"rank 0 of 1: right over alone", 1)

    def results(self):
        for ranks in (2, 4):
            self.require(self.run(ranks, "comm_pmix", "results"), rf"of {ranks}: right over shared memory", ranks)
        self.require(self.run(3, "comm_pmix", "results", NETWORK), r"of 3: right over UCX", 3)

    def compressed(self):
        for ranks in (2, 4):
            self.require(self.run(ranks, "comm_pmix", "compressed"), rf"compressed, {ranks} ranks over shared memory", ranks)
        self.require(self.run(3, "comm_pmix", "compressed", NETWORK), "compressed, 3 ranks over UCX", 3)

    def tuned(self):
        """Chosen by measured costs, every operation is right, as are those of communicators that are split off."""
        said = self.run(4, "comm_pmix", "results", {**NETWORK, "MUSTER_COMM_TUNE": "1"})
        self.require(said, r"of 4: right over UCX", 4)

    def explained(self):
        """What would be chosen here, and the sentence where there is nothing to choose."""
        launch = ["mpirun", "-np", "3", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else []),
                  str(self.job.build / "bin" / "muster"), "bench", "--explain"]
        table = json.loads(self.finish([*launch, "--json"], NETWORK))
        if (table["ranks"], table["nodes"], table["measured"]) != (3, 1, True) or "on-node=" not in table["numbers"]:
            raise Failure(f"measured another world: {table}")
        for line in table["rows"]:
            by_name = {one["algorithm"]: one["us"] for one in line["costs"]}
            if line["algorithm"] not in by_name or by_name[line["algorithm"]] > by_name[line["default"]] * 1.001:
                raise Failure(f"chose what costs more than the default: {line}")
        said = self.finish(launch, expect=78)
        self.require(said, "nothing to choose", 1)
        if "barrier" in said:
            raise Failure(f"a rank was left by another that had nothing to say: {said}")

    def again(self):
        self.require(self.run(2, "comm_pmix", "again"), "made again", 2)

    def absent(self):
        self.require(self.run(2, "comm_pmix", "absent", expect=None, survive=True),
                     "gave up: not all of the 2 processes", 1)

    def killed(self):
        for extra in ({}, NETWORK):
            for mode in ("kill", "ring_kill", "split_ring_kill"):
                said = self.run(4, "comm_pmix", mode, extra, expect=None, survive=True)
                self.require_ends(said, 4, [0, 2, 3], "AGAIN", "1", "rank 1", within=15)

    def frozen(self):
        # The frozen one is never continued; mpirun is asked to end what is left.
        said = self.run_frozen()
        self.require_ends(said, 3, [0, 2], "AGAIN", "1", "deadline passed; rank 1", within=10)

    def run_frozen(self):
        launcher = ["timeout", "--signal=TERM", "--kill-after=20", "12", "mpirun", "-np", "3", "--oversubscribe"]
        launcher += ["--allow-run-as-root"] if os.geteuid() == 0 else []
        return self.finish([*launcher, str(self.job.build / "bin" / "comm_pmix"), "freeze"], expect=None)

    def mismatch(self):
        said = self.run(3, "comm_pmix", "mismatch")
        self.require_ends(said, 3, [0, 1, 2], "MISUSE", None, r"rank 1.*99999|99999.*rank 1", within=15)
        # Rank 1 differs from both of its neighbours; either may be found first.
        sentence = r"rank 0 sends.* 100000 to rank 1 .*receives.* 99999;|rank 1 sends.* 99999 to rank 2 .*receives.* 100000;"
        for extra in ({}, NETWORK):
            said = self.run(3, "comm_pmix", "ring_mismatch", extra)
            self.require_ends(said, 3, [0, 1, 2], "MISUSE", None, sentence, within=15)

    def revoked(self):
        for extra in ({}, NETWORK):
            said = self.run(3, "comm_pmix", "revoke", extra)
            self.require_ends(said, 3, [0, 1, 2], "AGAIN", "", "rank 1 has had enough", within=15)

    def left(self):
        for extra in ({}, NETWORK):
            said = self.run(3, "comm_pmix", "leave", extra)
            self.require_ends(said, 3, [0, 2], "AGAIN", "", "rank 1 left|told by", within=15)

    def elastic(self):
        said = self.finish([str(self.job.build / "bin" / "muster"), "run", "--nproc", "1", "--",
                            str(self.job.build / "bin" / "comm_pmix"), "refused"], expect=None)
        self.require(said, "refused: this process is a worker of `muster run`", 1)

    # ---- in MPI programs

    def mpi_results(self):
        for ranks in (2, 4):
            said = self.run(ranks, "comm_mpi", "results")
            self.require(said, rf"of {ranks}: right over shared memory", ranks)
            self.require(said, rf"of {ranks // 2}: right over", ranks)
        self.require(self.run(4, "comm_mpi", "results", NETWORK), r"of 2: right over UCX", 4)

    def mpi_killed(self):
        for mode in ("kill", "split_kill"):
            said = self.run(4, "comm_mpi", mode, expect=None, survive=True)
            self.require_ends(said, 4, [0, 2, 3], "AGAIN", "1", "rank 1", within=15)

    def mpi_mismatch(self):
        for mode in ("mismatch", "ring_mismatch"):
            said = self.run(4, "comm_mpi", mode, expect=None)
            self.require_ends(said, 4, [0, 1, 2, 3], "MISUSE", None, r"rank 1.*99999|99999.*rank 1", within=15)

    def mpi_absent(self):
        self.require(self.run(2, "comm_mpi", "absent", expect=None), "gave up: not all ranks of the MPI", 1)

    def mpi_refused(self):
        self.require(self.run(2, "comm_mpi", "refused"), "all refused", 2)

    def mpich(self):
        program = self.job.build / "bin" / "comm_mpich"
        if not program.exists() or not shutil.which("mpiexec.mpich"):
            return "MPICH is missing; install mpich and libmpich-dev"
        said = self.finish(["mpiexec.mpich", "-n", "2", str(program), "mpich"])
        self.require(said, 'refused: this program runs "MPICH', 2)
        said = self.finish(["mpiexec.mpich", "-n", "2", str(self.job.build / "bin" / "comm_pmix"), "refused"])
        self.require(said, "refused: MPICH's mpiexec", 2)
        return None

    def preloaded(self):
        preload = {"LD_PRELOAD": str(self.job.build / "lib" / "libmuster_pmpi.so")}
        # MPI by itself first: what the program computes by hand is what MPI means.
        self.require(self.run(3, "plain_mpi", "-"), "of 3: the same, 0 operations by Muster", 3)
        for ranks, extra in ((2, {}), (3, {}), (4, {}), (3, NETWORK)):
            said = self.run(ranks, "plain_mpi", "-", {**preload, **extra})
            self.require(said, rf"of {ranks}: the same, [1-9]\d\d+ operations by Muster", ranks)
        # A rank that comes later than any deadline for forming: MPI did the rest by itself, after as long again.
        said = self.run(2, "plain_mpi", "late", {**preload, "MUSTER_COMM_FORM_TIMEOUT": "1"})
        self.require(said, r"of 2: the same, [1-9]\d\d+ operations by Muster", 2)

    def mpi_session(self):
        self.require(self.run(2, "comm_mpi", "session"), "trained in a world of 2", 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    parser.add_argument("--only", help="a regular expression for titles")
    options = parser.parse_args()
    if not shutil.which("mpirun"):
        print("comm: skipped, mpirun is missing; install openmpi-bin")
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    test = Comm(options.build)
    tests = [("alone", test.alone), ("every operation on 2, 3 and 4 ranks", test.results),
             ("compressed", test.compressed), ("tuned by measured costs", test.tuned), ("what bench explains", test.explained),
             ("several, and again", test.again), ("a rank that does not come", test.absent),
             ("a killed rank", test.killed), ("a frozen rank", test.frozen), ("different counts", test.mismatch),
             ("revoked", test.revoked), ("a rank that leaves", test.left), ("under muster run", test.elastic)]
    if (test.job.build / "bin" / "comm_mpi").exists():
        tests += [("MPI: every operation, the world and its halves", test.mpi_results),
                  ("MPI: a killed rank", test.mpi_killed), ("MPI: different counts", test.mpi_mismatch),
                  ("MPI: a rank that does not come", test.mpi_absent), ("MPI: what is refused", test.mpi_refused),
                  ("MPI: a program of MPICH", test.mpich), ("MPI: a session", test.mpi_session), ("MPI: a preloaded program", test.preloaded)]
    else:
        print("comm: programs of Open MPI were not built: install libopenmpi-dev and configure again")
    try:
        return run_tests([one for one in tests if re.search(options.only or "", one[0])], "comm")
    finally:
        test.job.close()


if __name__ == "__main__":
    sys.exit(main())
