#!/usr/bin/env python3
"""`muster sim` against what it stands for: real agents and workers live through losses, joins, notices and the loss of the
store's node, and the simulator is given the same trace, and what was measured: the length of the steps, the start of a node and
the relaunch. The steps it counts must be those that were made, but for a few percent.

Each step sleeps, so that its length is known and the same in every world: to the simulator it is all reduction. Losses cost
seconds; notices, of which one moves the store, next to nothing: the second scenario checks that the simulator says so, too.
Where the machine is so busy that undisturbed steps differ much, or a node starts slowly, a scenario that fails is played once
more."""
import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from rig import REQUEUE, TOP, Failure, require_no_processes, run_tests, wait_until  # noqa: E402
from jobs import Job  # noqa: E402

SLEEP_MS = 50
STATE_BYTES = 8 << 20
SAVE_EVERY = 40  # steps
NODES = "abcd"
MINIMUM, MAXIMUM = 2, 4
SLACK = 0.06  # of the steps; a simulator that knew of no loss would be 9 % above
NOTICE_S = 6
GAP_S = 0.3  # without a step: told, and no step
FORM_WAIT_S = 2  # the runtime's form_wait: three of four nodes wait so long for the fourth
USUAL_START_S = 1  # of a node, until its first step; where it takes longer, so does the scenario, up to twice
NOISY = 1.4  # one in twenty undisturbed steps takes so many times the median: the machine is busy

# Seconds after the first step: who goes, who comes.
LOSSES = [(5, "remove", "c"), (9, "add", "c"), (14, "remove", "a"), (20, "add", "a"), (24, "remove", "d"), (28, None, None)]
# The first node's notice moves the store.
NOTICES = [(5, "remove", "b"), (12, "add", "b"), (16, "remove", "a"), (23, None, None)]


def boot_time():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Replayed:
    """A scenario on real processes; what happened when, in seconds since the agents were started."""

    def __init__(self, build, scenario, with_notice):
        self.job = Job(build, "plan")
        self.scenario, self.with_notice = scenario, with_notice
        self.there, self.agents, self.trace = list(NODES), {}, []
        self.logs, self.checkpoints = self.job.folder / "steps", self.job.folder / "checkpoints"
        self.logs.mkdir()
        self.relaunches = []  # when the first agent of the launch before had ended
        self.ended_at = None

    def launch(self):
        """As a scheduler would, once nothing of the launch before is left."""
        self.job.new_launch()
        self.agents = {}
        for name in list(self.there):
            self.start(name)

    def start(self, name):
        program = [self.job.build / "bin" / "bench_recovery", "whole", STATE_BYTES, 1 << 16, SLEEP_MS, 10**6, self.logs,
                   self.checkpoints, SAVE_EVERY]
        grace = ["--grace", NOTICE_S] if self.with_notice else []
        self.agents[name] = self.job.start(name, 1, program, f"{MINIMUM}:{MAXIMUM}", extra=["--quiet", *grace])
        if len(self.agents) == 1:  # it leads, as the lowest node does in the simulator
            wait_until(lambda: any(event["event"] == "node joined" for event in self.agents[name].events()), 30, "the first node")

    def steps(self):
        """(time, version), in the order in which they were made."""
        made = []
        for path in self.logs.iterdir():
            for line in path.read_text().splitlines():
                if line.startswith("cpu") or len(fields := line.split()) != 4:
                    continue
                made.append((int(fields[2]) / 1e9 - self.began, int(fields[0])))
        return sorted(made)

    def do(self, at, what, name):
        self.trace.append((at, what, name))
        if what == "add":
            self.there.append(name)
            if self.agents:
                self.start(name)
            return
        self.there.remove(name)
        agent = self.agents.pop(name)
        if self.with_notice:
            self.trace[-1] = (at + NOTICE_S, what, name)
            agent.signal(signal.SIGTERM)
        else:
            agent.kill_node()

    def tend(self):
        """Starts the next launch when all of this one have ended."""
        codes = [agent.process.poll() for agent in self.agents.values()]
        if any(code not in (None, REQUEUE) for code in codes):
            raise Failure(f"agents ended with {codes}")
        if self.ended_at is None and any(code == REQUEUE for code in codes):
            self.ended_at = boot_time() - self.began
        if all(code == REQUEUE for code in codes):
            self.relaunches.append(self.ended_at)
            self.ended_at = None
            self.launch()

    def run(self):
        self.began = boot_time()
        self.trace = [(0, "add", name) for name in self.there]
        self.launch()
        wait_until(lambda: self.steps(), 60, "the first step")
        self.start_s = self.steps()[0][0]
        scale = min(2, max(1, self.start_s / USUAL_START_S))
        waiting = [(scale * at + self.start_s, what, name) for at, what, name in self.scenario]
        while True:
            now = boot_time() - self.began
            if now >= waiting[0][0]:
                _, what, name = waiting.pop(0)
                if what is None:
                    break
                self.do(now, what, name)
            self.tend()
            time.sleep(0.02)
        self.end_s = boot_time() - self.began
        for agent in self.agents.values():
            agent.kill_node()
        require_no_processes(self.job)
        made = [step for step in self.steps() if step[0] <= self.end_s]
        self.made = made[-1][1]  # the version at the end
        times = [at for at, _ in made]
        self.gaps = [(a, b - a) for a, b in zip([0.0, *times], [*times, self.end_s]) if b - a > GAP_S]
        self.measure(made)

    def was_disturbed(self):
        return self.noise > NOISY or self.start_s > USUAL_START_S

    def measure(self, made):
        """The length of a step, from one version's first member to the next one's, wherever nothing else takes time; how much it
        varies; and what a relaunch takes before its nodes form."""
        advances, newest = [], 0
        for at, version in made:
            if version > newest:
                advances.append(at)
                newest = version
        lengths = sorted(b - a for a, b in zip(advances, advances[1:]) if b - a < GAP_S)
        self.step_s = statistics.mean(lengths)
        self.noise = lengths[len(lengths) * 19 // 20] / statistics.median(lengths)
        took = [min(at for at, _ in made if at > ended) - ended for ended in self.relaunches]
        self.restart_s = max(0, statistics.mean(took) - FORM_WAIT_S) if took else 0


def simulated(build, real):
    with tempfile.TemporaryDirectory(prefix="muster-plan-") as folder:
        path = Path(folder) / "trace.csv"
        path.write_text("".join(f"{round(at * 1000)},{what},{name}\n" for at, what, name in sorted(real.trace, key=lambda one: one[0])))
        command = [build / "bin" / "muster", "sim", "--trace", path, "--nodes", f"{MINIMUM}:{MAXIMUM}", "--ranks-per-node", 1,
                   "--step", 1e-9 + real.step_s / 1e6, "--reduce", real.step_s, "--state", STATE_BYTES / 1e9, "--network", 1, "--storage", 0.5,
                   "--start", real.start_s, "--restart", real.restart_s, "--interval", SAVE_EVERY * real.step_s, "--loss", "reset",
                   "--notice", NOTICE_S if real.with_notice else 0, "--hours", real.end_s / 3600, "--json"]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise Failure(f"muster sim ended with {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)


def played(build, scenario, with_notice):
    real = Replayed(build, scenario, with_notice)
    try:
        real.run()
    finally:
        real.job.close()
    return real


def differences(real, sim, required, costs_s):
    """What is wrong, in words."""
    found = [f"{sim[name]} {name} are simulated, not {count}" for name, count in required.items() if sim[name] != count]
    lost_s = sum(sim["lost_s"].values()) - real.start_s
    if not costs_s[0] <= lost_s <= costs_s[1]:
        found.append(f"{lost_s:.2f} s are lost after the start in the simulation, not {costs_s[0]} to {costs_s[1]}")
    if abs(sim["steps"] / real.made - 1) > SLACK:
        found.append(f"{real.made} steps were made, and {sim['steps']:.0f} simulated")
    return found


def tell(real, sim):
    lost = {"real": real.end_s - real.made * real.step_s, "sim": sum(sim["lost_s"].values())}
    print(f"plan_against_run: {real.end_s:.1f} s, steps of {real.step_s * 1e3:.1f} ms (noise {real.noise:.2f}), start {real.start_s:.2f} s, "
          f"restart {real.restart_s:.2f} s: {real.made} made, {sim['steps']:.0f} simulated "
          f"({100 * (sim['steps'] / real.made - 1):+.1f} %); lost {lost['real']:.1f} s, simulated {lost['sim']:.1f} s: "
          + ", ".join(f"{name} {value:.2f}" for name, value in sim["lost_s"].items() if value > 0)
          + "; really no step for " + ", ".join(f"{length:.2f} s from {at:.1f}" for at, length in real.gaps), flush=True)


def compared(build, scenario, with_notice, required, costs_s):
    def run():
        for is_last in (False, True):
            real = played(build, scenario, with_notice)
            sim = simulated(build, real)
            tell(real, sim)
            found = differences(real, sim, required, costs_s)
            if not found:
                return
            if is_last or not real.was_disturbed():
                raise Failure("; ".join(found) + f" (noise {real.noise:.2f})")
            print(f"plan_against_run: {'; '.join(found)}; the machine is busy, so once more", flush=True)
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=TOP / "build" / "dev")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    return run_tests([("losses, and that of the store", compared(options.build, LOSSES, False, {"losses": 3, "requeues": 1, "rollbacks": 0}, (2, 12))),
                      ("notices, and the store moves", compared(options.build, NOTICES, True, {"losses": 0, "requeues": 0, "store_moves": 1}, (0, 1)))],
                     "plan_against_run")


if __name__ == "__main__":
    sys.exit(main())
