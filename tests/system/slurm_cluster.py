"""A Slurm cluster of one or several nodes on this machine: munged, slurmctld and a slurmd for each node, started without
systemd, with a configuration, folders, ports and a key of their own. Nothing of the system's own Slurm or munge is read or
touched.

It works on a bare container: processes are tracked through /proc, not cgroups, and nobody accounts.
"""
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from rig import Failure, wait_until
from jobs import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
# cred_expire is also how long Slurm holds a requeued job back; 120 s by default.
CONFIGURATION = """
ClusterName=muster
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType={scheduler}
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_wait}
MinJobAge=3600
ReturnToService=2
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""
BASE_STATE = re.compile(r"JobState=(\S+)")


def missing():
    """Why there can be no cluster here; None: there can."""
    absent = [name for name in (*DAEMONS, "sbatch", "scontrol") if not shutil.which(name, path=search_path())]
    if absent:
        return f"{', '.join(absent)} missing; install munge, slurmctld, slurmd and slurm-client"
    if os.geteuid() != 0:
        return "slurmd starts jobs only as root"
    return None


def search_path():
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class Cluster:
    def __init__(self, grace=20, kill_wait=10, nodes=1):
        """Several nodes have one processor each, and the scheduler that starts heterogeneous jobs."""
        self.folder = Path(tempfile.mkdtemp(prefix="muster-slurm-"))
        self.grace, self.kill_wait = grace, kill_wait
        self.daemons = []
        self.cpus = (os.cpu_count() or 1) if nodes == 1 else 1
        # Names that mean something to a batch script, which has to find its first node by it.
        self.nodes = ["localhost"] if nodes == 1 else [f"127.0.0.{number + 1}" for number in range(nodes)]
        # A job must see its cluster and no other; and this test no job that it may itself run in.
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        self.env["SLURM_CONF"] = str(self.folder / "slurm.conf")
        self.env["PATH"] = search_path()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self):
        for name in ("munge", "state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(mode=0o755)
        self.folder.chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(
            folder=self.folder, controller_port=free_port(), grace=self.grace, kill_wait=self.kill_wait,
            scheduler="sched/builtin" if len(self.nodes) == 1 else "sched/backfill", user=pwd.getpwuid(os.geteuid()).pw_name,
            nodes="\n".join(f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={free_port()} CPUs={self.cpus} "
                            "State=UNKNOWN" for node in self.nodes)))
        munge = self.folder / "munge"
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge / 'socket'}",
                     f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}")
        wait_until((munge / "socket").exists, 20, "munged's socket")
        self._daemon("slurmctld", "-D", "-i", "-c")
        for node in self.nodes:
            self._daemon("slurmd", "-D", "-N", node)
        wait_until(lambda: self.ask("sinfo", "-h", "-N", "-p", "low", "-o", "%T", fail=False).split() == ["idle"] * len(self.nodes),
                   60, "Slurm's nodes to be idle")

    def _daemon(self, name, *arguments):
        log = open(self.folder / f"{name}.out", "ab")
        process = subprocess.Popen([shutil.which(name, path=search_path()), *arguments], env=self.env, stdout=log,
                                   stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd=self.folder)
        log.close()
        self.daemons.append((name, process))

    def ask(self, *command, fail=True):
        """The answer of a Slurm command."""
        for name, process in self.daemons:
            if process.poll() is not None:
                raise Failure(f"{name} ended with {process.returncode}: {self.log_of(name)}")
        try:
            done = subprocess.run([str(part) for part in command], env=self.env, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            raise Failure(f"{command[0]} did not answer within 60 s: {self.log_of('slurmctld')}") from None
        if fail and done.returncode != 0:
            raise Failure(f"{' '.join(str(part) for part in command)} failed: {done.stderr.strip()}")
        return done.stdout

    def log_of(self, daemon, lines=15):
        text = ""
        for path in (*sorted(self.folder.glob(f"{daemon}*.log")), self.folder / f"{daemon}.out"):
            if path.exists():
                text += "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
        return text

    def submit(self, script, *options):
        """Submits a batch script (text), all output into one file; the job's id."""
        path = self.folder / f"script-{time.monotonic_ns()}.sh"
        path.write_text(script)
        output = self.folder / "job-%j.out"
        answer = self.ask("sbatch", "--parsable", "--open-mode=append", f"--output={output}", *options, path)
        return int(answer.strip())

    def output_of(self, job):
        path = self.folder / f"job-{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def show(self, job):
        return self.ask("scontrol", "show", "job", job)

    def state(self, job):
        return BASE_STATE.search(self.show(job))[1]

    def restarts(self, job):
        return int(re.search(r"Restarts=(\d+)", self.show(job))[1])

    def wait_state(self, job, states, seconds):
        def reached():
            state = self.state(job)
            return state if state in states else None
        try:
            return wait_until(reached, seconds, f"job {job} to be {' or '.join(states)}")
        except Failure as failure:
            raise Failure(f"{failure}; it is {self.state(job)}; it said:\n{self.output_of(job)[-3000:]}") from None

    def close(self, keep=False):
        if any(name == "slurmctld" and process.poll() is None for name, process in self.daemons):
            try:
                subprocess.run(["scancel", "--signal=KILL", "--full", "--state=RUNNING"], env=self.env, timeout=10,
                               capture_output=True)
            except subprocess.TimeoutExpired:
                pass
        for _, process in reversed(self.daemons):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for _, process in reversed(self.daemons):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self._end_steps()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _end_steps(self):
        """What slurmd has started and not ended: slurmstepd and what it holds. Told by this cluster's configuration."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            try:
                if mark in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                pass
