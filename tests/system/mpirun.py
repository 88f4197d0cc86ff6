#!/usr/bin/env python3
"""`mpirun PROGRAM`, without agents: a fixed world with the result of a single process, in which a loss ends the
job: as "requeue", or with the lost rank's own code, where mpirun kills the others before they can say so."""
import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from rig import REQUEUE, Failure, Job, gpt, processes_with, require_no_processes, run_tests

MPIRUN = ["mpirun", "-np", "2", "--oversubscribe"] + (["--allow-run-as-root"] if os.geteuid() == 0 else [])


class Mpirun:
    def __init__(self, build):
        self.job = Job(build, "mpirun")

    def same_as_alone(self):
        hello = str(self.job.build / "bin" / "hello")
        alone = subprocess.run([hello], capture_output=True, text=True, timeout=60)
        both = subprocess.run([*MPIRUN, hello], capture_output=True, text=True, timeout=100)
        for done in (alone, both):
            if done.returncode != 0:
                raise Failure(f"ended with {done.returncode}: {done.stdout}{done.stderr}")
        pattern = re.compile(r"^(y = .*), world of (\d+)$", re.MULTILINE)
        one, two = pattern.findall(alone.stdout), pattern.findall(both.stdout)
        if len(one) != 1 or len(two) != 1 or (one[0][1], two[0][1]) != ("1", "2"):
            raise Failure(f"worlds are not 1 and 2: {alone.stdout}{both.stdout}")
        if one[0][0] != two[0][0]:
            raise Failure(f"results differ: {one[0][0]} alone, {two[0][0]} on two ranks")

    def a_loss_ends_the_job(self):
        program = [str(part) for part in gpt(self.job.build, 1000000, "--ledger", self.job.folder)]
        process = subprocess.Popen([*MPIRUN, *program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   start_new_session=True)
        try:
            deadline = time.monotonic() + 100
            for line in process.stdout:
                if line.startswith("step 5/") and " world 2 " in line:
                    break
                if time.monotonic() > deadline:
                    raise Failure("no step of a world of 2 within 100 s")
            ranks = [pid for pid, command in processes_with(str(self.job.folder)).items() if not command.startswith("mpirun")]
            if len(ranks) != 2:
                raise Failure(f"{len(ranks)} ranks are running, not 2")
            os.kill(max(ranks), signal.SIGKILL)
            said, _ = process.communicate(timeout=60)
            require_no_processes(self.job)
            if process.returncode not in (REQUEUE, 128 + signal.SIGKILL):
                raise Failure(f"mpirun ended with {process.returncode}, not {REQUEUE}: {said[-1500:]}")
        except subprocess.TimeoutExpired:
            raise Failure("mpirun did not end within 60 s after a rank was killed") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            for pid in processes_with(str(self.job.folder)):
                os.kill(pid, signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    options = parser.parse_args()
    if not shutil.which("mpirun"):
        print("mpirun: skipped, mpirun is missing; install openmpi-bin")
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    test = Mpirun(options.build)
    try:
        return run_tests([("the result of a single process", test.same_as_alone),
                          ("a killed rank ends the job", test.a_loss_ends_the_job)], "mpirun")
    finally:
        test.job.close()


if __name__ == "__main__":
    sys.exit(main())
