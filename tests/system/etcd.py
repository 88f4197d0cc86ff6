#!/usr/bin/env python3
"""Jobs whose store is etcd: three members of it on the loopback, real agents, real workers.

Whoever is killed - the leader's agent, a member of etcd, the leader once more while the next one takes over - the job
goes on without starting again, loses no committed step, and ends with the weights of an untouched run, bit for bit. With
the whole of etcd gone it ends as requeue, with all saved that the workers held, and a new launch goes on from there.
The same where etcd speaks TLS and knows users.
"""
import argparse
import base64
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import time
import traceback
import urllib.request

from rig import REQUEUE, STEP_LINE, Failure, Training, events_text, newest_version, require_no_processes, untouched, wait_until
from jobs import free_port  # rig has made it findable

LEASE_S, PARTITION_WAIT_S = 3, 4
EVERYBODY_LOST_S = 60  # to the end of a training that is begun again from an early save
AGENT_OPTIONS = ["--rdzv-lease", LEASE_S, "--worker-silence", 4, "--node-silence", 4, "--partition-wait", PARTITION_WAIT_S,
                 "--restart-delay", 0.1, "--restarts", 1000, "--form-wait", 0.5, "--rdzv-timeout", 30, "--grace", 60,
                 "--frozen-timeout", 60]


class Etcd:
    """A cluster of three; `secured`: over TLS, and with a user for the keys of the job named as in JOB alone."""

    JOB = "secured"

    def __init__(self, folder, secured=False):
        self.folder, self.secured = folder / "etcd", secured
        self.folder.mkdir()
        self.scheme, more = "http", []
        if secured:
            self.make_certificates()
            self.scheme = "https"
            more = ["--cert-file", self.file("etcd.pem"), "--key-file", self.file("etcd.key"), "--auth-token-ttl", "2"]
        self.clients, peers = [free_port() for _ in range(3)], [free_port() for _ in range(3)]
        cluster = ",".join(f"m{i}=http://127.0.0.1:{port}" for i, port in enumerate(peers))
        self.members = []
        for i in range(3):
            log = open(self.folder / f"m{i}.log", "w")
            client = f"{self.scheme}://127.0.0.1:{self.clients[i]}"
            self.members.append(subprocess.Popen(
                ["etcd", "--name", f"m{i}", "--data-dir", str(self.folder / f"m{i}"), "--unsafe-no-fsync",
                 "--listen-client-urls", client, "--advertise-client-urls", client,
                 "--listen-peer-urls", f"http://127.0.0.1:{peers[i]}",
                 "--initial-advertise-peer-urls", f"http://127.0.0.1:{peers[i]}",
                 "--initial-cluster", cluster, "--initial-cluster-state", "new", "--logger", "zap", *more],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True))
            log.close()
        wait_until(self.healthy, 30, "three members of etcd")
        if secured:
            self.require_users()

    def file(self, name):
        return str(self.folder / name)

    def make_certificates(self):
        """A CA and etcd's own. 2 days: no test takes longer."""
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        (self.folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        for words in (["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test-ca"],
                      ["req", *key, "-keyout", "etcd.key", "-out", "request", "-subj", "/CN=etcd"],
                      ["x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                       "-extfile", "names", "-out", "etcd.pem"]):
            subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def ask(self, port, path, body=None, timeout=5):
        context = ssl.create_default_context(cafile=self.file("ca.pem")) if self.secured else None
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.scheme}://127.0.0.1:{port}/{path}", data, timeout=timeout, context=context) as answer:
            return json.load(answer)

    def require_users(self):
        """From now on etcd lets nobody in but root, and `muster` to the keys of one job."""
        start, end = (base64.b64encode(f"/muster/{self.JOB}{last}".encode()).decode() for last in "/0")
        for name, password in (("root", secrets.token_hex(8)), ("muster", "pass word")):
            self.ask(self.clients[0], "v3/auth/user/add", {"name": name, "password": password})
            self.ask(self.clients[0], "v3/auth/role/add", {"name": name})
            self.ask(self.clients[0], "v3/auth/user/grant", {"user": name, "role": name})
        self.ask(self.clients[0], "v3/auth/role/grant", {"name": "muster", "perm": {"permType": "READWRITE", "key": start, "range_end": end}})
        self.ask(self.clients[0], "v3/auth/enable", {})
        with open(os.open(self.file("password"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write("pass word\n")

    def healthy(self):
        for port in self.clients:
            try:
                if self.ask(port, "health", timeout=1).get("health") != "true":
                    return False
            except (OSError, ValueError):
                return False
        return True

    def url(self):
        return ("etcds://" if self.secured else "etcd://") + ",".join(f"127.0.0.1:{port}" for port in self.clients)

    def agent_options(self):
        if not self.secured:
            return []
        return ["--job", self.JOB, "--etcd-cacert", self.file("ca.pem"), "--etcd-user", "muster", "--etcd-password-file",
                self.file("password")]

    def kill(self, which):
        self.members[which].kill()
        self.members[which].wait(10)

    def close(self):
        for member in self.members:
            if member.poll() is None:
                member.kill()
                member.wait(10)


class Run(Training):
    def __init__(self, options, title):
        super().__init__(options, "etcd")
        self.etcd = Etcd(self.job.folder, secured=title == "secured")
        self.account = self.job.folder / "account.jsonl"

    def start(self, name, workers):
        self.agents[name] = self.job.start(name, workers, self.program(50), "1:8", self.on_line,
                                           extra=[*AGENT_OPTIONS, "--account", self.account, *self.etcd.agent_options()], rdzv=self.etcd.url())
        return self.agents[name]

    def launch(self, workers):
        self.job.new_launch()
        self.agents = {}
        for name, count in workers.items():
            self.start(name, count)
        wait_until(lambda: len(self.nodes_in_view()) >= len(workers), 60, "all nodes in the view")

    def leader(self):
        """The living agent that said last that it leads."""
        leads = {}
        for agent in self.agents.values():
            for line in list(agent.lines):
                if "leads, as leader" in line and agent.alive():
                    leads[int(line.split("leads, as leader ")[1].split()[0])] = agent
        return leads[max(leads)] if leads else None

    def until_others_lead(self, than):
        wait_until(lambda: self.leader() not in (None, than), 30, f"a leader after {than.name}")

    def finish(self):
        for agent in self.agents.values():
            if agent.alive() and (code := agent.wait(120)) != 0:
                raise Failure(f"node {agent.name} ended with {code}; its last lines:\n" + "\n".join(agent.lines[-20:]))

    def check(self, reference, workers_started=None):
        require_no_processes_but_etcd(self)
        self.check_result(reference)
        started = sum(event["event"] == "worker started" for event in self.job.events())
        if workers_started is not None and started != workers_started:
            raise Failure(f"{started} workers were started, not {workers_started}: some started again")

    def require_account(self, leaders, launches=1, interruptions=0):
        """Whoever led, the job has one account: of so many launches, the newest led by so many agents in turn."""
        lines = [json.loads(line) for line in self.account.read_text().splitlines()]
        whats = [line["what"] for line in lines]
        runs = {line["run"] for line in lines}
        if whats.count("began") != launches or whats.count("ended") != launches or len(runs) != launches:
            raise Failure(f"the account of {launches} launches holds {whats} of runs {runs}")
        newest = [line for line in lines if line["run"] == lines[-1]["run"]]
        terms = sorted({line["term"] for line in newest})
        if terms != list(range(1, leaders + 1)) or newest[0]["what"] != "began" or newest[-1]["what"] != "ended":
            raise Failure(f"leaders {terms} of {leaders} wrote {[line['what'] for line in newest]}")
        if newest[-1]["exit_code"] != 0 or any(line.get("steps_lost", 0) != 0 for line in lines):
            raise Failure(f"the ends are {[line for line in lines if line['what'] == 'ended']}")
        told = subprocess.run([self.job.muster, "account", self.account], capture_output=True, text=True, timeout=30)
        words = (f"all in all {launches} launch{'' if launches == 1 else 'es'}, {interruptions} "
                 f"interruption{'' if interruptions == 1 else 's'}: 0 steps lost")
        if told.returncode != 0 or words not in told.stdout:
            raise Failure(f"muster account: {told.returncode} {told.stdout}{told.stderr}, without '{words}'")

    def require_no_step_lost(self, version):
        """After the leader's loss the members go on from what they held, not from a save."""
        def bases():
            return [event["version"] for event in self.job.events()
                    if event["event"] == "view installed" and event["from"] == "leader"]

        # Steps that were made before the loss may be read after it: they do not show that the next view runs.
        before = bases().count(-1)
        wait_until(lambda: len(bases()) > before, 60, "the view after the leader's loss")
        if bases()[-1] < version:
            raise Failure(f"the newest view starts at version {bases()[-1]}, and version {version} was committed")

    def close(self, keep=False):
        self.etcd.close()
        self.job.close(keep=keep)


def require_no_processes_but_etcd(run):
    run.etcd.close()
    require_no_processes(run.job)


def leader_killed(run, reference):
    """Its node with it, in the middle of training; then the next one's."""
    run.launch({"a": 1, "b": 2, "c": 1})
    run.until_step(run.steps * 0.3)
    first, step = run.leader(), run.step
    first.kill_node()
    run.say(f"killed node {first.name}, which led")
    run.until_others_lead(first)
    run.until_step(step + 20)
    run.require_no_step_lost(step - 1)
    second, step = run.leader(), run.step
    second.kill_node()
    run.say(f"killed node {second.name}, which led then")
    run.until_others_lead(second)
    del run.agents[first.name], run.agents[second.name]
    run.until_step(step + 20)
    run.require_no_step_lost(step - 1)
    run.finish()
    run.require_account(leaders=3)
    run.check(reference, 4)


def leader_frozen(run, reference):
    """Its agent stands still for longer than its lease, and then goes on: it must not lead any more."""
    run.launch({"a": 1, "b": 1, "c": 1})
    run.until_step(run.steps * 0.3)
    first = run.leader()
    first.signal(signal.SIGSTOP)
    run.say(f"froze the agent of node {first.name}, which leads")
    run.until_others_lead(first)
    step = run.step
    run.until_step(step + 20)
    first.signal(signal.SIGCONT)
    run.say(f"node {first.name} goes on")
    run.finish()
    run.check(reference)


def member_killed(run, reference):
    """One of three members of etcd: nothing happens."""
    run.launch({"a": 1, "b": 1})
    run.until_step(run.steps * 0.3)
    run.etcd.kill(0)
    run.say("killed a member of etcd")
    run.until_step(run.steps * 0.6)
    first = run.leader()
    if any("does not lead" in line for agent in run.agents.values() for line in agent.lines):
        raise Failure("the leader went, though two of three members of etcd live")
    first.kill_node()
    run.say(f"killed node {first.name}, which led")
    run.until_others_lead(first)
    del run.agents[first.name]
    run.finish()
    run.check(reference, 2)


def etcd_gone(run, reference):
    """All of it, for good: everything is saved, and the job ends as requeue."""
    run.launch({"a": 1, "b": 1})
    run.until_step(run.steps * 0.4)
    for i in range(3):
        run.etcd.kill(i)
    run.say("killed all of etcd")
    for agent in run.agents.values():
        if (code := agent.wait(100)) != REQUEUE:
            raise Failure(f"node {agent.name} ended with {code} without etcd, expected {REQUEUE}; its last lines:\n" +
                          "\n".join(agent.lines[-20:]))
    newest, step = newest_version(run.checkpoints), run.step
    run.say(f"the job ended as requeue, with version {newest} saved")
    ended = [line for line in map(json.loads, run.account.read_text().splitlines()) if line["what"] == "ended"]
    if len(ended) != 1 or ended[0]["exit_code"] != REQUEUE or ended[0]["saved"] != newest or ended[0]["steps_lost"] != 0:
        raise Failure(f"version {newest} is saved, and the account's end is {ended}")
    if newest < step:
        raise Failure(f"the newest save is version {newest}, but step {step} was done")
    shutil.rmtree(run.etcd.folder)
    run.etcd = Etcd(run.job.folder)
    run.launch({"a": 1})
    run.finish()
    run.require_account(leaders=1, launches=2, interruptions=1)
    run.check(reference)


def joins_and_drains(run, reference):
    """The leader's node is drained, and one joins: leading moves, and nobody starts again."""
    run.launch({"a": 1, "b": 1})
    run.until_step(run.steps * 0.2)
    run.start("c", 1)
    wait_until(lambda: "c" in run.nodes_in_view(), 60, "node c in the view")
    first = run.leader()
    first.signal(signal.SIGTERM)
    run.say(f"drains node {first.name}, which leads")
    if (code := first.wait(60)) != REQUEUE:
        raise Failure(f"the drained node ended with {code}; its last lines:\n" + "\n".join(first.lines[-20:]))
    run.until_others_lead(first)
    del run.agents[first.name]
    run.finish()
    run.require_account(leaders=2)
    run.check(reference, 3)


def everybody_lost(run, reference):
    """All nodes of the view at once, while another has just come: their hosts say that they are dead, and it goes on from the newest
    save, without starting again."""
    run.launch({"a": 1, "b": 1})
    wait_until(lambda: newest_version(run.checkpoints) > 0, 60, "a save")
    last = run.start("c", 1)
    wait_until(lambda: any(event["event"] == "node joined" and event.get("text") == "c" for event in run.job.events()), 60, "node c at the leader")
    for name in ("a", "b"):
        run.agents.pop(name).kill_node()
    killed_at = time.monotonic()
    run.say("killed all nodes of the view")
    wait_until(lambda: not last.alive() or "c" in run.nodes_in_view(), 200, "node c in a view, or its end")
    run.say(f"node c goes on, or has ended, {time.monotonic() - killed_at:.1f} s later")
    run.finish()
    if (took := time.monotonic() - killed_at) > EVERYBODY_LOST_S:
        raise Failure(f"the node that was left needed {took:.0f} s")
    run.check(reference, 3)


def secured(run, reference):
    """etcd over TLS, with a user whose tokens are soon forgotten: a leader and a member of etcd are lost as without."""
    run.launch({"a": 1, "b": 1, "c": 1})
    run.until_step(run.steps * 0.3)
    run.etcd.kill(0)
    run.say("killed a member of etcd")
    first, step = run.leader(), run.step
    first.kill_node()
    run.say(f"killed node {first.name}, which led")
    run.until_others_lead(first)
    del run.agents[first.name]
    run.until_step(step + 20)
    run.require_no_step_lost(step - 1)
    run.finish()
    run.require_account(leaders=2)
    run.check(reference, 3)


TESTS = {"leader-killed": leader_killed, "leader-frozen": leader_frozen, "member-killed": member_killed,
         "etcd-gone": etcd_gone, "drain": joins_and_drains,
         "everybody-lost": everybody_lost, "secured": secured}


def attempt(options, title, reference):
    run = Run(options, title)
    try:
        TESTS[title](run, reference)
        print(f"etcd: {title}: ok, {time.monotonic() - run.began:.1f} s", flush=True)
        if options.verbose:
            print("\n".join(run.log), flush=True)
        return True
    except Exception as problem:  # a defect of the test itself is reported like one of the product
        text = str(problem) if isinstance(problem, Failure) else traceback.format_exc()
        lines = "\n".join(f"[{agent.name}] {line}" for agent in run.job.agents for line in agent.lines[-25:]
                          if not STEP_LINE.search(line))
        print(f"etcd: {title}: FAILED: {text}\nwhat was done:\n" + "\n".join(run.log) +
              f"\nevents:\n{events_text(run.job)}\nlines:\n{lines}", flush=True)
        return False
    finally:
        run.close(keep=options.keep)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--only", choices=sorted(TESTS))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if not shutil.which("etcd"):
        print("etcd: skipped: no etcd here (Debian: etcd-server)")
        return 77
    reference = untouched(options)
    titles = [options.only] if options.only else list(TESTS)
    return 0 if all([attempt(options, title, reference) for title in titles]) else 1


if __name__ == "__main__":
    sys.exit(main())
