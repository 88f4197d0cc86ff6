"""The peers of bench_recovery: torchrun's elastic restart (recovery_torch.py), and torchft (recovery_torchft.py)."""
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from elastic_training import PATIENCE, SLEEP_MS, STATE_BYTES, UPDATED_BYTES, WORKERS, Lines, boot_ns, free_port, until

HERE = Path(__file__).parent
TORCHRUN_SCRIPT, TORCHFT_SCRIPT = HERE / "recovery_torch.py", HERE / "recovery_torchft.py"
TORCH_EVERY = 25  # EVERY in recovery_torch.py
PAUSE = 0.05  # moments come from the workers; who looks must not take the processor from them
WARM_STEPS = 10


class Peer:
    """A training of 2 * WORKERS processes of a peer: the lines that these write into its folder, and all its processes."""

    NAME = ""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="muster-bench-"))
        self.output = open(self.folder / "output", "wb")
        self.environment = dict(os.environ, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
        self.started = []
        self.sources, self.steps = {}, {}  # process → its lines; process → step → moment and what else its line says

    def start(self, command, **more):
        process = subprocess.Popen([str(word) for word in command], stdout=more.pop("stdout", self.output), stderr=self.output,
                                   env=self.environment, start_new_session=True, **more)
        self.started.append(process)
        return process

    def look(self):
        for path in self.folder.glob("updates-*"):
            pid = int(path.name.removeprefix("updates-"))
            for line in self.sources.setdefault(pid, Lines(path)).read():
                if line == "wrong":
                    raise RuntimeError(f"{self.NAME}'s workers computed a wrong sum")
                step, at, *more = (int(word) for word in line.split())
                self.steps.setdefault(pid, {})[step] = (at, *more)

    def gone(self):
        return {pid for pid in self.steps if not running(pid)}

    def until(self, condition, what):
        try:
            return until(condition, f"{self.NAME}'s {what}", 120, PAUSE)
        except RuntimeError as error:
            raise RuntimeError(f"{error}:\n{(self.folder / 'output').read_text(errors='replace')[-2000:]}") from None

    def common_steps(self, processes):
        """Steps that all of these have made → when the last of them had."""
        made = [self.steps[pid] for pid in processes]
        common = set.intersection(*map(set, made)) if made else ()
        return {step: max(steps[step][0] for steps in made) for step in common}

    def close(self):
        for process in self.started:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(10)
        for process in Path("/proc").glob("[0-9]*"):  # torchrun gives its workers sessions of their own
            try:
                if str(self.folder).encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                pass
        self.output.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def running(pid):
    """A child that was killed and not yet waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


class Torchrun(Peer):
    """Two agents of torchrun, with what makes it fastest: a look at the workers every 0.1 s (5 s is usual, on newer ones 0.1 s), as
    many nodes as there can be, so that a rendezvous waits for nobody else, one thread for each worker, and a checkpoint in the page
    cache. Starting Python and importing torch again are part of its way."""

    NAME = "torchrun"

    def __init__(self, python):
        super().__init__()
        port = free_port()
        # torch 1.13 fails on Python 3.11 where workers' output is to go nowhere else, unless it is told so for each worker: of
        # these there is no tenth.
        for _ in range(2):
            self.start([python, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", WORKERS, "--max_restarts", 1000,
                        "--rdzv_id", "bench", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}",
                        "--monitor_interval", 0.1, "--redirects", "9:1", "--tee", "9:1", TORCHRUN_SCRIPT, STATE_BYTES,
                        UPDATED_BYTES, SLEEP_MS, self.folder])

    def until_running(self, steps):
        """Until all processes have made so many steps together: the processes, and when all had made the first of them."""
        def there():
            self.look()
            processes = list(set(self.steps) - self.gone())
            common = self.common_steps(processes) if len(processes) == 2 * WORKERS else ()
            return (processes, common[min(common)]) if len(common) >= steps else None
        return self.until(there, "workers")

    def kill_worker(self, chance):
        """Milliseconds from SIGKILL to the first step that all have made since. That this step repeats one of before is not
        counted against it."""
        processes, _ = self.until_running(TORCH_EVERY + WARM_STEPS)  # there is a checkpoint
        time.sleep(chance.uniform(0, SLEEP_MS / 1000))
        killed_at = boot_ns()
        os.kill(chance.choice(processes), signal.SIGKILL)
        until(lambda: self.gone() >= set(processes), "the end of torchrun's other workers", PATIENCE, PAUSE)
        return (self.until_running(1)[1] - killed_at) / 1e6


class Torchft(Peer):
    """Replicas under a lighthouse, over Gloo. One that was killed is started again once the others have gone on, and is sent the
    state; that is not measured."""

    NAME = "torchft"

    def __init__(self, python):
        super().__init__()
        self.python = python
        lighthouse = self.start([python, TORCHFT_SCRIPT, "lighthouse"], stdout=subprocess.PIPE, text=True)
        self.address = lighthouse.stdout.readline().split()[-1]
        self.replicas = {}
        for _ in range(2 * WORKERS):
            self.start_replica()

    def start_replica(self):
        process = self.start([self.python, TORCHFT_SCRIPT, STATE_BYTES, UPDATED_BYTES, SLEEP_MS, self.folder, self.address])
        self.replicas[process.pid] = process

    def steps_of(self, members, count, since=0):
        """Until these have made so many steps as the only ones of a quorum after that moment: when all had made the first."""
        def there():
            self.look()
            if not members <= set(self.steps):
                return None
            mine = [{step for step, (at, size) in self.steps[pid].items() if size == len(members) and at > since} for pid in members]
            common = set.intersection(*mine)
            return max(self.steps[pid][min(common)][0] for pid in members) if len(common) >= count else None
        return self.until(there, f"{len(members)} replicas")

    def kill_worker(self, chance):
        """Milliseconds from SIGKILL to the first step that all others have committed without it."""
        self.steps_of(set(self.replicas), WARM_STEPS, boot_ns())
        time.sleep(chance.uniform(0, SLEEP_MS / 1000))
        victim = chance.choice(sorted(self.replicas))
        killed_at = boot_ns()
        self.replicas.pop(victim).kill()
        took = (self.steps_of(set(self.replicas), 1, killed_at) - killed_at) / 1e6
        self.start_replica()
        return took


def median_recovery(peer, kills, chance):
    try:
        return statistics.median(peer.kill_worker(chance) for _ in range(kills))
    finally:
        peer.close()
