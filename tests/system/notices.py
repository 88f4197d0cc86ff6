#!/usr/bin/env python3
"""Notices of clouds, files and HTTP calls, on real agents: what is acted on, what waits, what is withdrawn, and what is
made of services that are slow, fail or lie. The metadata services are fakes on the loopback address."""
import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rig import REQUEUE, TOP, Failure, Job, gpt, newest_version, require_no_processes, run_tests, wait_until

sys.path.insert(0, str(TOP / "tests" / "fakes"))
from jobs import free_port  # noqa: E402
from metadata import Aws, Azure, Gcp  # noqa: E402

FOREVER = 100000000


class Notices:
    def __init__(self, build):
        self.job = Job(build, "notices")
        self.number = 0
        self.services = []

    def close(self):
        self.job.close()
        for service in self.services:
            service.close()

    def service(self, made):
        self.services.append(made)
        return made

    # ---- a training of one node, and what is said of it

    def train(self, *options, url=None, env=None, checkpoints=None):
        self.number += 1
        self.job.new_launch()
        self.checkpoints = checkpoints or self.job.folder / f"checkpoints-{self.number}"
        program = gpt(self.job.build, FOREVER, "--checkpoint-dir", self.checkpoints, "--checkpoint-every", 1000000)
        variables = dict(env or {}, **({"MUSTER_METADATA_URL": url} if url else {}))
        agent = self.job.start(f"n{self.number}", 2, program, "1:1", env=variables, extra=[str(part) for part in options])
        wait_until(lambda: self.steps(agent) > 5, 60, "the first steps")
        return agent

    @staticmethod
    def steps(agent):
        return sum(line.startswith(f"[{agent.name}/0] step ") for line in agent.lines)

    def said(self, agent, text, seconds=20):
        try:
            wait_until(lambda: any(text in line for line in agent.lines), seconds, f"'{text}'")
        except Failure as failure:
            lines = "\n".join(line for line in agent.lines if "] step " not in line)[-2000:]
            raise Failure(f"{failure}; the agent said:\n{lines}") from None

    def goes_on(self, agent, seconds=1.0):
        time.sleep(seconds)
        before = self.steps(agent)
        wait_until(lambda: self.steps(agent) > before + 3, 20, "more steps: the training must go on")

    def saved_and_ended(self, agent, seconds=60):
        code = agent.wait(seconds)
        text = "\n".join(line for line in agent.lines if "] step " not in line)[-3000:]
        if code != REQUEUE:
            raise Failure(f"the agent ended with {code}, not {REQUEUE}:\n{text}")
        if newest_version(self.checkpoints) < 1:
            raise Failure(f"nothing was saved:\n{text}")
        self.said(agent, "safe to kill", 1)
        require_no_processes(self.job)

    def end(self, agent):
        agent.signal(signal.SIGTERM)
        agent.wait(60)

    # ---- clouds

    def aws(self):
        fake = self.service(Aws())
        agent = self.train("--notices", "aws", url=fake.url)
        fake.recommend_rebalance()
        self.said(agent, "rebalance recommendation")
        fake.forget_tokens()
        self.goes_on(agent)
        fake.interrupt(60)
        self.said(agent, "AWS: spot interruption, terminate")
        self.saved_and_ended(agent)

    def gcp(self):
        fake = self.service(Gcp())
        agent = self.train("--notices", "gcp", url=fake.url)
        fake.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
        self.said(agent, "live migration")
        fake.maintenance = "NONE"
        self.said(agent, "withdrawn, nothing was lost")
        self.goes_on(agent)
        fake.preempted = "TRUE"
        self.said(agent, "GCP: the instance is preempted")
        self.saved_and_ended(agent)

    def azure(self):
        fake = self.service(Azure(first_delay=6))  # longer than any other question may take
        agent = self.train("--notices", "azure", "--notice-lead", "30", url=fake.url)
        fake.schedule("E-1", "Reboot", 900)
        self.said(agent, "Azure: Reboot", 40)
        fake.cancel()
        self.said(agent, "withdrawn, nothing was lost")
        fake.schedule("E-2", "Freeze", 10)
        self.said(agent, "Azure: Freeze")
        self.goes_on(agent)
        fake.schedule("E-3", "Preempt", 25)
        self.said(agent, "Azure: Preempt")
        self.saved_and_ended(agent)
        if fake.acknowledged != ["E-3"]:
            raise Failure(f"acknowledged: {fake.acknowledged}, not the preemption alone")

    def azure_event_of_several_machines(self):
        fake = self.service(Azure())
        agent = self.train("--notices", "azure", url=fake.url)
        fake.schedule("E-4", "Preempt", 25, machines=["vm_0", "vm_1"])
        self.saved_and_ended(agent)
        if fake.acknowledged:
            raise Failure(f"acknowledged {fake.acknowledged}, which takes vm_1 away before its own save")

    def bad_services(self):
        """A service that is slow, fails, lies or drops calls stops nothing; when it is well again its notice is heard."""
        fake = self.service(Aws())
        fake.mode, fake.delay = "slow", 4
        agent = self.train("--notices", "aws", url=fake.url)
        self.said(agent, "AWS cannot be asked for notices")
        for mode in ("failing", "lying", "dropping"):
            fake.mode = mode
            count = len(fake.calls)
            wait_until(lambda: len(fake.calls) > count, 30, f"a call to the {mode} service")
            self.goes_on(agent, 0.2)
        fake.mode = "well"
        fake.interrupt(90)
        self.said(agent, "AWS answers again", 30)
        self.saved_and_ended(agent)
        if sum("cannot be asked" in line for line in agent.lines) != 1:
            raise Failure("the trouble was not said once")

    def two_sources(self):
        fake = self.service(Gcp())
        file = self.job.folder / "two-sources"
        agent = self.train("--notices", "gcp", "--notice-file", file, url=fake.url)
        file.write_text("node 600 maintenance of the rack")
        self.said(agent, "maintenance of the rack: acted on 120 s before its deadline")
        fake.preempted = "TRUE"
        self.saved_and_ended(agent)

    # ---- file and HTTP

    def file(self):
        path = self.job.folder / "notice"
        agent = self.train("--notice-file", path)
        path.write_text("node 3x")
        self.said(agent, "is no number of seconds")
        path.write_text("job 900 planned")
        self.said(agent, "acted on 120 s before")
        path.unlink()
        self.said(agent, "withdrawn, nothing was lost")
        self.goes_on(agent)
        path.write_text("job 30")
        self.saved_and_ended(agent)

    def http(self):
        address = f"127.0.0.1:{free_port()}"
        ready, live = self.job.folder / "ready", self.job.folder / "live"
        agent = self.train("--notice-listen", address, "--ready-file", ready, "--live-file", live)
        wait_until(lambda: ready.exists() and live.exists(), 10, "the probes' files")
        if code := self.tell(address, "node 3x").returncode != 78:
            raise Failure(f"a bad notice ended with {code}")
        self.tell(address, "job 900 planned")
        self.said(agent, "acted on 120 s before")
        self.tell(address, "--withdraw")
        self.said(agent, "withdrawn, nothing was lost")
        told = self.tell(address, "--wait", "node 30 preStop")
        if told.returncode != 0 or "safe to kill" not in told.stdout:
            raise Failure(f"muster notice --wait: {told.returncode} {told.stdout} {told.stderr}")
        self.saved_and_ended(agent)
        if ready.exists():
            raise Failure("the node still says that it is ready")
        if self.tell(address, "node").returncode != 75:
            raise Failure("a notice to nobody was heard")

    def tell(self, address, *words):
        return subprocess.run([self.job.muster, "notice", "--to", address, *words], capture_output=True, text=True, timeout=90)

    def impatient_schedulers(self):
        """LSF sends SIGINT, SIGTERM, SIGKILL; PBS signals the workers, too. No second signal may cut the save short."""
        for variable, signals in (("LSB_JOBID", (signal.SIGINT, signal.SIGTERM)), ("PBS_JOBID", (signal.SIGTERM, signal.SIGTERM))):
            agent = self.train(env={variable: "1"})
            for number in signals:
                agent.signal(number)
                for pid in agent.worker_pids().values():
                    os.kill(pid, signal.SIGTERM)
            self.saved_and_ended(agent)
            if any("stopping at once" in line for line in agent.lines):
                raise Failure(f"{variable}: the second signal was taken for impatience")

    def time_limits(self):
        """PBS and LSF say nothing before the limit: they are asked, and the job saves --notice-lead before it."""
        tools = self.job.folder / "tools"
        tools.mkdir()
        answer = tools / "answer"
        for tool in ("qstat", "bjobs"):
            (tools / tool).write_text(f"#!/bin/sh\necho $0 $* >>{tools}/asked\ncat {answer}\n")
            (tools / tool).chmod(0o755)
        pbs = "Job Id: 7.server\n    resources_used.walltime = {used}\n    Resource_List.walltime = {limit}\n"
        cases = (("pbs", "PBS_JOBID", "7.server", pbs.format(used="00:00:10", limit="02:00:00"),
                  pbs.format(used="00:00:20", limit="00:00:50"), "qstat -f 7.server", "by its wall time"),
                 ("lsf", "LSB_JOBID", "7", "2:00 L\n", "0:01 L\n", "bjobs -noheader -o time_left 7", "by its run limit"))
        for scheduler, variable, job, long, short, asked, words in cases:
            answer.write_text("no server\n")
            agent = self.train("--notices", scheduler, "--drain-every", "0.3",
                               env={variable: job, "PATH": f"{tools}:{os.environ['PATH']}"})
            self.said(agent, "answers what cannot be read: no server")
            answer.write_text(long)
            self.said(agent, f"{words}: acted on 120 s before its deadline")
            self.goes_on(agent)
            answer.write_text(short)
            self.saved_and_ended(agent)
            if asked not in (tools / "asked").read_text():
                raise Failure(f"{scheduler} was asked: {(tools / 'asked').read_text()[-500:]}")

    def twice_at_once(self):
        """As timeout(1) signals: the agent, and at once its whole process group."""
        agent = self.train()
        for _ in range(3):
            agent.signal(signal.SIGTERM)
        self.saved_and_ended(agent)

    def a_signal_after_a_notice(self):
        """SIGTERM after a notice of another kind is the first signal: it must not end a save under way."""
        path = self.job.folder / "before-a-signal"
        agent = self.train("--notice-file", path)
        path.write_text("job 60")
        self.said(agent, "notice file")
        agent.signal(signal.SIGTERM)
        self.saved_and_ended(agent)
        if any("stopping at once" in line for line in agent.lines):
            raise Failure("SIGTERM ended the save")

    def cost(self):
        """Three launches with one account: the first is preempted, the second is killed, the third is preempted again."""
        path = self.job.folder / "account.jsonl"
        first = self.train("--account", path)
        first.signal(signal.SIGTERM)
        self.saved_and_ended(first)
        self.said(first, "cost: 0 steps lost", 1)
        saved = newest_version(self.checkpoints)
        second = self.train("--account", path, checkpoints=self.checkpoints)
        self.said(second, "start 2: its first step came")
        second.kill_node()
        third = self.train("--account", path, checkpoints=self.checkpoints)
        third.signal(signal.SIGUSR1)
        self.saved_and_ended(third)
        self.said(third, "all in all 3 launches, 3 interruptions (1 without a word, so without its cost): 0 steps lost", 1)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        whats = [line["what"] for line in lines]
        if whats != ["began", "first step", "ended", "began", "first step", "began", "first step", "ended"]:
            raise Failure(f"the account holds {whats}")
        ended, again, killed = lines[2], lines[4], lines[6]
        if "SIGTERM to the agent" not in ended["cause"] or ended["steps_lost"] != 0 or ended["saved"] != saved:
            raise Failure(f"the first end is {ended}, and version {saved} was saved")
        if not 0 < ended["saving_s"] <= ended["noticed_s"]:
            raise Failure(f"the times of the first end are no times of one save: {ended}")
        if again["resumed"] != saved or again["away_s"] <= 0 or killed["away_s"] != 0:
            raise Failure(f"the starts are {again} and {killed}")
        events = [event for event in first.events() if event["event"] == "cost"]
        if len(events) != 1 or events[0]["subject"] != 0 or events[0]["version"] != saved:
            raise Failure(f"the first launch's events of its cost: {events}")

    def handing_over(self):
        """Two nodes, both needed; one is told that it goes before a save could be done. It leaves in time and in good order, and the
        other saves the newest version all the same."""
        slow = self.job.folder / "slow-disk"
        slow.write_text("0.4")  # for each write: a save takes longer than the time that is left
        self.job.new_launch()
        checkpoints = self.job.folder / "checkpoints-handed-over"
        program = gpt(self.job.build, FOREVER, "--checkpoint-dir", checkpoints, "--checkpoint-every", 300)
        env = {"LD_PRELOAD": str(self.job.build / "lib" / "system_slow_disk.so"), "SLOW_DISK": str(slow)}
        stays = self.job.start("stays", 1, program, "2:2", env=env)
        wait_until(lambda: any("node joined" in line for line in stays.lines), 20, "the first node")
        leaves = self.job.start("leaves", 1, program, "2:2", env=env, extra=["--grace", "2.5"])
        self.said(stays, "save durable", 120)
        step = self.steps(stays)
        began = time.monotonic()
        leaves.signal(signal.SIGTERM)
        code, took = leaves.wait(60), time.monotonic() - began
        self.said(stays, "hand over: 1 nodes stay")
        if code != REQUEUE or took > 2.5 or any("stopping at once" in line for line in leaves.lines):
            raise Failure(f"the node that leaves ended with {code} after {took:.1f} s:\n" + "\n".join(leaves.lines[-20:]) +
                          "\nand the one that stays:\n" + "\n".join(stays.lines[-30:]))
        self.said(leaves, "safe to kill", 1)
        if (code := stays.wait(60)) != REQUEUE:
            raise Failure(f"the node that stays ended with {code}")
        self.said(stays, "cost: 0 steps lost", 1)
        if newest_version(checkpoints) < step:
            raise Failure(f"step {step} was made, and the newest save is version {newest_version(checkpoints)}")
        require_no_processes(self.job)

    def after_the_last_step(self):
        """A notice to the job that one node hears ends the programs of all nodes in time."""
        self.job.new_launch()
        program = ["/bin/sh", "-c", f"{self.job.build}/bin/system_careless none && echo the loop is over; exec sleep 1000"]
        first, second = [self.job.start(name, 1, program, "2:2", extra=["--notice-file", self.job.folder / f"file-{name}"])
                         for name in ("first", "second")]
        for agent in (first, second):
            self.said(agent, "the loop is over", 60)
        began = time.monotonic()
        (self.job.folder / "file-second").write_text("job 6")
        for agent in (second, first):
            if (code := agent.wait(60)) != REQUEUE:
                raise Failure(f"the agent of {agent.name} ended with {code}:\n" + "\n".join(agent.lines[-20:]))
        if (took := time.monotonic() - began) > 7:
            raise Failure(f"both were gone after {took:.1f} s, and the notice left 6 s")
        require_no_processes(self.job)

    def only_loopback_is_listened_on(self):
        done = subprocess.run([self.job.muster, "run", "--notice-listen", "0.0.0.0:7411", "--", "true"], capture_output=True,
                              text=True, timeout=30)
        if done.returncode != 78 or "not a loopback address" not in done.stderr:
            raise Failure(f"0.0.0.0 was taken: {done.returncode} {done.stderr}")
        done = subprocess.run([self.job.muster, "run", "--notices", "asw", "--", "true"], capture_output=True, text=True,
                              timeout=30)
        if done.returncode != 78 or "it takes aws, gcp, azure, slurm, pbs and lsf" not in done.stderr:
            raise Failure(f"an unknown cloud was taken: {done.returncode} {done.stderr}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    parser.add_argument("--only", default="", help="run only the tests with this in their titles")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    test = Notices(options.build and Path(options.build))
    try:
        tests = [("AWS: rebalance, lost token, interruption", test.aws),
                 ("GCP: migration, preemption", test.gcp),
                 ("Azure: slow first answer, withdrawn, freeze, preemption, acknowledgement", test.azure),
                 ("Azure: an event of several machines is not acknowledged", test.azure_event_of_several_machines),
                 ("a metadata service that is slow, fails, lies, drops", test.bad_services),
                 ("two sources", test.two_sources),
                 ("file", test.file),
                 ("HTTP call, probes, muster notice", test.http),
                 ("LSF and PBS repeat their signals", test.impatient_schedulers),
                 ("time limits of PBS and LSF", test.time_limits),
                 ("SIGTERM after another notice", test.a_signal_after_a_notice),
                 ("SIGTERM three times at once", test.twice_at_once),
                 ("too few stay, and a save by all does not fit", test.handing_over),
                 ("a notice to the job after the last step", test.after_the_last_step),
                 ("what each preemption cost", test.cost),
                 ("what is not listened on", test.only_loopback_is_listened_on)]
        return run_tests([entry for entry in tests if options.only in entry[0]], "notices")
    finally:
        test.close()


if __name__ == "__main__":
    sys.exit(main())
