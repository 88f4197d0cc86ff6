#!/usr/bin/env python3
"""Preemption by a real Slurm: slurmctld, slurmd and munged of its own on this machine (slurm_cluster.py). A GPT that is
preempted, signalled, timed out or cancelled; what it saved, whether it came back, and whether its weights in the end are
those of a training that nobody disturbed."""
import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

from rig import REQUEUE, TOP, Failure, Job, newest_version, processes_with, run_tests, wait_until, weights_of
from jobs import free_port  # noqa: E402, from scripts/, which rig adds
from slurm_cluster import Cluster, missing

GRACE = 20
WORKERS = 2
# What hetero.sbatch calls: a step is a process of this machine, and Slurm answers nothing else.
PLAYED = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\necho $$ >"$PLAYED_STEPS/step-$$"\nexec "$@"\n',
    "scancel": 'for step in "$PLAYED_STEPS"/step-*; do kill -USR1 "$(cat "$step")" 2>/dev/null; done; exit 0\n',
    "scontrol": '[ "$2" = hostnames ] || exit 1\necho "$3"\n',
}


class Preemptions:
    def __init__(self, build, rounds, steps):
        self.job = Job(build, "slurm-jobs")
        self.rounds = rounds
        self.cluster = Cluster(grace=GRACE)
        self.steps = steps
        self.undisturbed = None

    def close(self):
        self.cluster.close()
        self.job.close()

    # ---- jobs

    def training(self, name, steps):
        """A model whose step takes tens of milliseconds."""
        folder = self.job.folder / name
        folder.mkdir(exist_ok=True)
        return [self.job.build / "bin" / "gpt", "--layers", 2, "--width", 64, "--heads", 4, "--context", 64, "--sequences", 2,
                "--steps", steps, "--warmup", 5, "--microbatches", 8, "--lanes", 8, "--report-every", 1,
                "--sample-bytes", 10, "--checkpoint-dir", folder / "checkpoints", "--checkpoint-every", 50,
                "--summary", folder / "summary"]

    def script(self, name, program, options="", prefix=""):
        """A batch script as in deploy/slurm: the agent is a job step, so that Slurm's signals reach it."""
        folder = self.job.folder / name
        words = " ".join(shlex.quote(str(part)) for part in (
            self.job.muster, "run", "--nproc", WORKERS, "--events", folder / "events.jsonl",
            "--requeue-marker", folder / "requeue", *options.split(), "--", *program))
        return f"#!/bin/sh\n{prefix}srun --kill-on-bad-exit=0 {words}\n"

    def submit(self, name, program, *sbatch, options="", prefix=""):
        return self.cluster.submit(self.script(name, program, options, prefix), "--partition=low", "--ntasks=1",
                                   f"--cpus-per-task={self.cluster.cpus}", "--requeue", *sbatch)

    def preempt(self, seconds=2):
        """Takes all processors for a job of higher priority; its id."""
        return self.cluster.submit(f"#!/bin/sh\nsleep {seconds}\n", "--partition=high", f"--nodes={len(self.cluster.nodes)}",
                                   "--ntasks-per-node=1", f"--cpus-per-task={self.cluster.cpus}")

    @contextlib.contextmanager
    def two_nodes(self):
        """Jobs go to a cluster of two nodes, one processor each."""
        one, self.cluster = self.cluster, Cluster(grace=GRACE, nodes=2)
        try:
            yield
        finally:
            self.cluster.close()
            self.cluster = one

    # ---- what is to be seen

    def steps_said(self, job):
        return self.cluster.output_of(job).count("] step ")

    def wait_steps(self, job, count, seconds=120):
        wait_until(lambda: self.steps_said(job) >= count, seconds, f"{count} steps of job {job}; it said:\n"
                   f"{self.cluster.output_of(job)[-2000:]}")

    def require_said(self, job, text):
        if text not in self.cluster.output_of(job):
            raise Failure(f"job {job} did not say '{text}':\n{self.cluster.output_of(job)[-3000:]}")

    def reference(self):
        """Weights and length in steps of a training that nobody disturbs, under Slurm as well."""
        if self.undisturbed is None:
            job = self.submit("undisturbed", self.training("undisturbed", self.steps))
            self.cluster.wait_state(job, ["COMPLETED"], 200)
            self.undisturbed = weights_of(self.job.folder / "undisturbed" / "summary")
        return self.undisturbed

    def require_same_weights(self, name):
        if weights_of(self.job.folder / name / "summary") != self.reference():
            raise Failure(f"the weights of {name} differ from the undisturbed training's")

    # ---- the tests

    def fixed_world(self):
        """`srun PROGRAM`, without agents: the ranks find each other through PMIx, and compute what one alone does."""
        hello = self.job.build / "bin" / "hello"
        alone = subprocess.run([hello], capture_output=True, text=True, timeout=60)
        job = self.cluster.submit(f"#!/bin/sh\nsrun --mpi=pmix --ntasks=2 {shlex.quote(str(hello))}\n", "--partition=low",
                                  "--ntasks=2")
        self.cluster.wait_state(job, ["COMPLETED"], 60)
        found = [re.findall(r"^(y = .*), world of (\d+)$", text, re.MULTILINE)
                 for text in (alone.stdout, self.cluster.output_of(job))]
        if [len(each) for each in found] != [1, 1] or [each[0][1] for each in found] != ["1", "2"]:
            raise Failure(f"worlds are not 1 and 2: {alone.stdout}{self.cluster.output_of(job)}")
        if found[0][0][0] != found[1][0][0]:
            raise Failure(f"results differ: {found[0][0][0]} alone, {found[1][0][0]} on two ranks")

    def preempted(self):
        """Saves inside its grace time, is requeued, resumes from what it saved, and ends with the same weights."""
        self.reference()
        for number in range(self.rounds):
            name = f"preempted-{number}"
            job = self.submit(name, self.training(name, self.steps))
            self.wait_steps(job, 20 + 17 * number % 150)
            began = time.monotonic()
            winner = self.preempt()
            self.cluster.wait_state(winner, ["RUNNING", "COMPLETED"], GRACE + 30)
            took = time.monotonic() - began
            saved = newest_version(self.job.folder / name / "checkpoints")
            self.cluster.wait_state(job, ["COMPLETED"], 200)
            self.require_said(job, "is preempted")
            self.require_said(job, "asked Slurm to requeue")
            if self.cluster.restarts(job) != 1:
                raise Failure(f"{name} was started again {self.cluster.restarts(job)} times, not once")
            if f"resumed: version {saved}" not in self.cluster.output_of(job) or saved < 1:
                raise Failure(f"{name} did not resume from version {saved}, which it had saved:\n"
                              f"{self.cluster.output_of(job)[-3000:]}")
            if took > GRACE:
                raise Failure(f"{name} held its processors for {took:.1f} s, longer than its grace time")
            self.require_same_weights(name)
            print(f"slurm: round {number + 1} of {self.rounds}: preempted, gone after {took:.1f} s, resumed from version "
                  f"{saved}", flush=True)

    def deploy(self, script, name, steps, *sbatch, **variables):
        """Submits a script of deploy/slurm as it stands; the job's id and TRAIN_FOLDER."""
        folder = self.job.folder / name
        program = [str(part) for part in self.training(name, steps)]
        at = program.index("--checkpoint-dir")
        program = program[:at] + program[at + 2:]  # the script gives it
        exports = dict(variables, PATH=f"{self.job.build}/bin:{self.cluster.env['PATH']}", TRAIN_FOLDER=folder)
        answer = self.cluster.ask("sbatch", "--parsable", f"--output={self.cluster.folder}/job-%j.out",
                                  "--export=ALL," + ",".join(f"{key}={value}" for key, value in exports.items()), "--partition=low",
                                  *sbatch, TOP / "deploy" / "slurm" / script, *program)
        return int(answer), folder

    def the_script_in_deploy(self):
        """deploy/slurm/elastic.sbatch as it stands: preempted, requeued, same weights, and what it cost."""
        job, folder = self.deploy("elastic.sbatch", "deployed", self.steps, "--nodes=1", f"--cpus-per-task={self.cluster.cpus}",
                                  TRAIN_WORKERS=WORKERS)
        self.wait_steps(job, 30)
        self.preempt()
        self.cluster.wait_state(job, ["COMPLETED"], 200)
        self.require_said(job, "asked Slurm to requeue")
        self.require_said(job, "resumed: version")
        self.require_same_weights("deployed")
        if list(folder.glob("secret-*")):
            raise Failure("the script has left the secret behind")
        self.require_said(job, "all in all 2 launches, 1 interruption: 0 steps lost")
        lines = [json.loads(line) for line in (folder / f"account-{job}.jsonl").read_text().splitlines()]
        whats = [line["what"] for line in lines]
        if whats != ["began", "first step", "ended", "requeue", "began", "first step", "ended"]:
            raise Failure(f"the account holds {whats}")
        ended, again = lines[2], lines[5]
        if ended["steps_lost"] != 0 or "is preempted" not in ended["cause"] + self.cluster.output_of(job) or \
                not 0 < ended["saving_s"] <= ended["noticed_s"] <= GRACE or ended["saved"] != again["resumed"]:
            raise Failure(f"the account's end is {ended}, and the next start {again}")
        print(f"slurm: the preemption cost {ended['steps_lost']} steps; {ended['stopping_s']} s to stop, {ended['saving_s']} s of it "
              f"saving; {again['away_s']} s until started again, {again['starting_s']} s to the first step", flush=True)

    def signalled_through_the_script(self):
        """--signal=B:USR1@100 tells the batch script alone, which hands it on."""
        job, _ = self.deploy("elastic.sbatch", "batch-signal", 100000000, "--nodes=1", f"--cpus-per-task={self.cluster.cpus}",
                             "--signal=B:USR1@100", "--time=2", TRAIN_WORKERS=WORKERS)
        self.wait_steps(job, 5)
        wait_until(lambda: "resumed: version" in self.cluster.output_of(job), 150, "the requeued launch of the signalled job")
        self.require_said(job, "SIGUSR1 from Slurm")
        self.require_said(job, "asked Slurm to requeue")
        self.cancel(job)

    def heterogeneous_job(self):
        """deploy/slurm/hetero.sbatch as it stands, as a real heterogeneous job: two components on two nodes are one world,
        preempted together, requeued together, resumed, with the weights of an undisturbed training."""
        self.reference()
        with self.two_nodes():
            job, folder = self.deploy("hetero.sbatch", "hetero-job", self.steps, TRAIN_WORKERS_0=2, TRAIN_WORKERS_1=1,
                                      TRAIN_NODES_MIN=2)
            self.wait_steps(job, 40)
            self.require_said(job, "world 3 nodes 2")
            began = time.monotonic()
            winner = self.preempt()
            self.cluster.wait_state(winner, ["RUNNING", "COMPLETED"], GRACE + 30)
            took = time.monotonic() - began
            if took > GRACE:
                raise Failure(f"the components held their nodes for {took:.1f} s, longer than the grace time")
            saved = newest_version(folder / "checkpoints")
            # Slurm's backfill scheduler takes three minutes to start a requeued heterogeneous job on free nodes.
            self.cluster.wait_state(job, ["COMPLETED"], 600)
            self.require_said(job, "asked Slurm to requeue")
            self.require_said(job, f"resumed: version {saved}")
            self.require_said(job, "all in all 2 launches, 1 interruption: 0 steps lost")
            if self.cluster.restarts(job) != 1 or self.cluster.restarts(job + 1) != 1:
                raise Failure(f"the components were started again {self.cluster.restarts(job)} and "
                              f"{self.cluster.restarts(job + 1)} times, not once")
            self.require_same_weights("hetero-job")
            if list(folder.glob("secret-*")):
                raise Failure("the script has left the secret behind")
            print(f"slurm: a heterogeneous job: preempted, gone after {took:.1f} s, resumed from version {saved}", flush=True)

    def drained_node_of_two(self):
        """deploy/slurm/elastic.sbatch on two nodes, of which one is drained: the other goes on, without a requeue."""
        self.reference()
        with self.two_nodes():
            job, _ = self.deploy("elastic.sbatch", "shrunk", self.steps, "--nodes=2", MUSTER_NOTICES="slurm", MUSTER_DRAIN_EVERY="0.5",
                                 TRAIN_WORKERS=1, TRAIN_NODES_MIN=1)
            self.wait_steps(job, 40)
            self.require_said(job, "world 2 nodes 2")
            # Both nodes are this machine, so the agent of either may have come first to the rendezvous's address.
            leader = re.search(r"\[(\S+) leader\]", self.cluster.output_of(job))[1]
            drained, = [node for node in self.cluster.nodes if node != leader]
            self.cluster.ask("scontrol", "update", f"NodeName={drained}", "State=DRAIN", "Reason=rack 7")
            self.cluster.wait_state(job, ["COMPLETED"], 200)
            self.require_said(job, f"Slurm drains node {drained}: rack 7")
            self.require_said(job, "plan: 1: members are being drained")
            self.require_said(job, "muster: the node is drained (exit code 75)")
            self.require_said(job, "world 1 nodes 1")
            if self.cluster.restarts(job) != 0:
                raise Failure("the job was started again, though one node was left")
            self.require_same_weights("shrunk")

    def heterogeneous(self):
        """The same script where srun and scontrol are played: what it does with a signal that comes to it alone, and with more
        workers in one component. Two components make one world, save, and resume."""
        folder, tools = self.job.folder / "hetero", self.job.folder / "played"
        tools.mkdir()
        program = [str(part) for part in self.training("hetero", 400)]
        at = program.index("--checkpoint-dir")
        program = program[:at] + program[at + 2:]
        for name, text in PLAYED.items():
            (tools / name).write_text("#!/bin/bash\n" + text)
            (tools / name).chmod(0o755)
        env = dict(self.cluster.env, PATH=f"{tools}:{self.job.build}/bin:{self.cluster.env['PATH']}", TRAIN_FOLDER=str(folder),
                   SLURM_JOB_ID=str(free_port()), SLURM_HET_SIZE="2", TRAIN_WORKERS_0="2", TRAIN_WORKERS_1="1",
                   TRAIN_NODES_MIN="2", PLAYED_STEPS=str(tools))
        for group in ("0", "1"):
            env[f"SLURM_JOB_NUM_NODES_HET_GROUP_{group}"] = "1"
            env[f"SLURM_JOB_NODELIST_HET_GROUP_{group}"] = "localhost"
        first = self.play(env, program, preempt=True)
        if first.returncode != REQUEUE or "world 3 nodes 2" not in first.stdout or not list(folder.glob("secret-*")):
            raise Failure(f"the first launch ended with {first.returncode}:\n{first.stdout[-3000:]}")
        second = self.play(env, program, preempt=False)
        if second.returncode != 0 or "resumed: version" not in second.stdout or list(folder.glob("secret-*")):
            raise Failure(f"the second launch ended with {second.returncode}:\n{second.stdout[-3000:]}")

    def play(self, env, program, preempt):
        """The batch script, run as slurmstepd would. Preempted: the signal comes to the script alone (B:), which hands it on."""
        output = self.job.folder / f"hetero-{preempt}.out"
        with open(output, "wb") as file:
            script = subprocess.Popen(["bash", TOP / "deploy" / "slurm" / "hetero.sbatch", *program], env=env, stdout=file,
                                      stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            if preempt:
                wait_until(lambda: output.read_text(errors="replace").count("] step ") > 20, 90,
                           f"steps of both components; they said:\n{output.read_text(errors='replace')[-2000:]}")
                script.send_signal(signal.SIGUSR1)
            code = script.wait(120)
        finally:
            if script.poll() is None:
                os.killpg(script.pid, signal.SIGKILL)
                script.wait(10)
        return subprocess.CompletedProcess(script.args, code, output.read_text(errors="replace"))

    def drained(self):
        """A node that an administrator drains: the job saves, is requeued, and goes on when there is a node again."""
        job = self.submit("drained", self.training("drained", 100000000), options="--notices slurm --drain-every 1")
        self.wait_steps(job, 20)
        self.cluster.ask("scontrol", "update", "NodeName=localhost", "State=DRAIN", "Reason=rack 7")
        try:
            wait_until(lambda: self.cluster.state(job) == "PENDING", 60, f"the job to leave the node; it said:\n"
                       f"{self.cluster.output_of(job)[-2000:]}")
            self.require_said(job, "Slurm drains node localhost: rack 7")
            self.require_said(job, "asked Slurm to requeue")
            self.require_stop_saved("drained", job)
        finally:
            self.cluster.ask("scontrol", "update", "NodeName=localhost", "State=RESUME")
        wait_until(lambda: "resumed: version" in self.cluster.output_of(job), 60, "the next launch of the job")
        if self.cluster.restarts(job) != 1:
            raise Failure(f"it was started again {self.cluster.restarts(job)} times, not once")
        self.cancel(job)

    def signalled_early(self):
        """--signal=USR1@100: saved and requeued long before the time limit, and resumed."""
        job = self.submit("signalled", self.training("signalled", 100000000), "--signal=USR1@100", "--time=2")
        self.wait_steps(job, 5)
        wait_until(lambda: "resumed: version" in self.cluster.output_of(job), 150, "the requeued launch of the signalled job")
        self.require_said(job, "SIGUSR1 from Slurm")
        self.require_said(job, "reaches its time limit")
        self.require_said(job, "asked Slurm to requeue")
        self.cancel(job)

    def cancelled(self):
        """scancel: saved within KillWait, and not requeued."""
        job = self.submit("cancelled", self.training("cancelled", 100000000))
        self.wait_steps(job, 60)
        self.cancel(job)
        self.require_said(job, f"Slurm job {job} is cancelled")
        self.require_said(job, "not requeued by muster: the job was cancelled")
        self.require_stop_saved("cancelled", job)
        time.sleep(8)  # longer than Slurm holds a requeued job back
        if self.cluster.state(job) != "CANCELLED" or self.cluster.restarts(job) != 0:
            raise Failure(f"the cancelled job came back: {self.cluster.show(job)}")

    def cancel(self, job):
        self.cluster.ask("scancel", job)
        wait_until(lambda: "COMPLETING" not in self.cluster.ask("squeue", "-h", "-j", job, "-o", "%T", fail=False) and
                   self.cluster.state(job) == "CANCELLED", 60, f"job {job} to be cancelled")
        wait_until(lambda: not processes_with(str(self.job.folder)), 30, f"the processes of job {job} to end")

    def require_stop_saved(self, name, job):
        if newest_version(self.job.folder / name / "checkpoints") % 50 == 0:
            raise Failure(f"{name} made no save but the periodic ones:\n{self.cluster.output_of(job)[-3000:]}")

    def over_its_time_limit(self):
        """No --signal: SIGTERM at the time limit, saved within KillWait, requeued."""
        job = self.submit("limited", self.training("limited", 100000000), "--time=1")
        self.wait_steps(job, 5)
        wait_until(lambda: "resumed: version" in self.cluster.output_of(job), 180, "the requeued launch of the limited job")
        self.require_said(job, "is over its time limit")
        self.cancel(job)

    def too_slow_to_save(self):
        """The stop-save cannot be written in time: that is said, the save before it stays, and the weights come right."""
        name = "slow"
        slow = self.job.folder / "slow-disk"
        job = self.submit(name, self.training(name, self.steps),
                          prefix=f"export LD_PRELOAD={self.job.build}/lib/system_slow_disk.so SLOW_DISK={slow}\n")
        checkpoints = self.job.folder / name / "checkpoints"
        wait_until(lambda: newest_version(checkpoints) >= 50, 120, "the first periodic save")
        slow.write_text("60")
        saved = newest_version(checkpoints)
        winner = self.preempt()
        self.cluster.wait_state(winner, ["RUNNING", "COMPLETED"], GRACE + 30)
        if newest_version(checkpoints) > saved + 50:
            raise Failure("the disk was not slow: a save came through")
        saved = newest_version(checkpoints)
        slow.unlink()
        self.cluster.wait_state(job, ["COMPLETED"], 200)
        self.require_said(job, f"version {saved} is the newest that is saved, steps after it are NOT")
        self.require_said(job, f"resumed: version {saved}")
        self.require_same_weights(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    parser.add_argument("--rounds", type=int, default=2, help="preemptions of the first test")
    parser.add_argument("--steps", type=int, default=2000, help="of each training; it must outlast what is done to it")
    parser.add_argument("--short", action="store_true", help="leave out the tests that wait minutes for Slurm's clock")
    parser.add_argument("--only", default="", help="run only the tests with this in their titles")
    parser.add_argument("--keep", action="store_true", help="leave the cluster's folder for reading")
    options = parser.parse_args()
    if why := missing():
        print(f"slurm: skipped, {why}")
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    test = Preemptions(options.build, options.rounds, options.steps)
    try:
        tests = [
            ("srun without agents", test.fixed_world),
            ("preempted by a job of higher priority", test.preempted),
            ("scancel", test.cancelled),
            ("a drained node", test.drained),
            ("--signal=USR1@100", test.signalled_early)]
        if not options.short:
            tests += [("the script in deploy/slurm", test.the_script_in_deploy),
                      ("the script for heterogeneous jobs, played", test.heterogeneous),
                      ("a heterogeneous job", test.heterogeneous_job),
                      ("a drained node of two", test.drained_node_of_two),
                      ("--signal=B:USR1@100", test.signalled_through_the_script),
                      ("time limit", test.over_its_time_limit),
                      ("a state that cannot be written in time", test.too_slow_to_save)]
        return run_tests([entry for entry in tests if options.only in entry[0]], "slurm")
    finally:
        if options.keep:
            print(f"slurm: kept {test.cluster.folder} and {test.job.folder}")
        test.cluster.close(keep=options.keep)
        test.job.close(keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())
