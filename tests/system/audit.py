#!/usr/bin/env python3
"""A worker is killed, a stranger knocks with a wrong secret: the leader's audit log tells both, with reasons, its chain
holds, and shows each kind of tampering."""
import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

from rig import REQUEUE, TOP, Failure, Training, require_no_processes, run_tests, wait_until

sys.path.insert(0, str(TOP / "tests" / "fakes"))
from metadata import Azure  # noqa: E402


class Audited(Training):
    def audit_log(self, name):
        return self.job.folder / f"audit-{name}.jsonl"

    def start(self, name):
        program = self.program(checkpoint_every=50)
        self.agents[name] = self.job.start(name, 2, program, "1:2", on_line=self.on_line,
                                           extra=["--audit", self.audit_log(name), "--restart-delay", 0.1, "--form-wait", 2])

    def audit(self, *arguments, environment=None):
        done = subprocess.run([self.job.muster, "audit", *map(str, arguments)], capture_output=True, text=True, timeout=60,
                              env=os.environ | {name: str(value) for name, value in (environment or {}).items()})
        return done.returncode, done.stdout + done.stderr

    def verify(self, path, *arguments):
        return self.audit("verify", path, "--secret-file", self.job.secret, *arguments)

    def require(self, condition, what):
        if not condition:
            raise Failure(what)

    def knock_with_a_wrong_secret(self):
        wrong = self.job.folder / "wrong"
        wrong.write_text(secrets.token_hex(32))
        wrong.chmod(0o600)
        subprocess.run([self.job.muster, "run", "--nnodes", "1:2", "--rdzv", f"127.0.0.1:{self.job.port}", "--secret-file", wrong,
                        "--rdzv-timeout", "2", "--", "/bin/true"], capture_output=True, timeout=60)

    def run(self):
        self.job.new_launch()
        self.start("a")
        wait_until(lambda: any(event["event"] == "node joined" for event in self.agents["a"].events()), 30, "the store")
        self.start("b")
        wait_until(lambda: self.nodes_in_view() >= {"a", "b"}, 60, "a view of both nodes")
        self.until_step(20)
        self.knock_with_a_wrong_secret()
        os.kill(self.agents["b"].worker_pids()[1], signal.SIGKILL)
        for name in "ab":
            if (code := self.agents[name].wait(120)) != 0:
                raise Failure(f"agent {name} ended with {code}:\n" + "\n".join(self.agents[name].lines[-20:]))
        self.check_log()
        self.check_tampering()
        self.check_answers()
        self.check_names()
        self.check_answer_to_azure()
        require_no_processes(self.job)

    def check_log(self):
        for name in "ab":
            code, text = self.verify(self.audit_log(name))
            self.require(code == 0 and "hmac-sha256" in text, f"verify of node {name}'s log: {code}, {text}")
        code, text = self.audit("show", self.audit_log("a"), "--json", "--secret-file", self.job.secret)
        self.require(code == 0, f"show: {code}, {text[-500:]}")
        records = json.loads(text)["records"]
        lost = [record for record in records if record["event"] == "member lost" and "on node b" in record["text"]]
        self.require(lost and "killed by signal 9" in lost[0]["text"], f"no record of the killed worker and why: {lost}")
        installed = [record for record in records if record["event"] == "view installed" and record["seq"] > lost[0]["seq"]]
        self.require(installed and installed[0]["generation"] > lost[0]["generation"] and installed[0]["amount"] == 3
                     and installed[0]["text"], f"no record of the view without it: {installed}")
        self.require(any(record["event"] == "refused" and "wrong secret" in record["text"] for record in records),
                     "no record of the agent with a wrong secret")
        for event in ("save durable", "save verified", "plan", "leader", "job ended"):
            self.require(any(record["event"] == event and record["text"] for record in records),
                         f"no record of '{event}'")
        self.require(any(record["event"] == "decision" and record["from"].startswith("worker") and "the retention keeps" in record["text"]
                         for record in records), "no record of a save that was removed, and why")
        self.require(any(record["event"] == "worker ended" and record["text"].endswith("; it is not started again") for record in records),
                     "no record of what follows the end of a worker")
        last = records[-1]
        self.require(last["event"] == "agent ended" and last["amount"] == 0, f"the last record is {last}")
        head = json.loads(self.verify(self.audit_log("a"), "--json")[1])["logs"][0]["head"]
        self.require(any(f"head {head}" in line for line in self.agents["a"].lines), "the agent has not told its head")
        _, people = self.audit("show", self.audit_log("a"))
        self.require("killed by signal 9" in people and "NOT checked" in people, f"show without the secret:\n{people[-800:]}")
        code, _ = self.audit("show", self.audit_log("a"))
        self.require(code == 2, f"show without the secret ended with {code}, as if it were checked")
        code, text = self.audit("verify", self.audit_log("a"), environment={"MUSTER_SECRET_FILE": self.job.secret})
        self.require(code == 0 and "of node a," in text, f"verify with MUSTER_SECRET_FILE: {code}, {text}")

    def check_tampering(self):
        lines = self.audit_log("a").read_text().splitlines(keepends=True)
        head = json.loads(lines[-1])["hash"]
        lost = next(i for i, line in enumerate(lines) if '"event":"member lost"' in line)
        changed = lines.copy()
        changed[lost] = changed[lost].replace("signal 9", "signal 8")
        swapped = lines.copy()
        swapped[lost - 1], swapped[lost] = swapped[lost], swapped[lost - 1]
        path = self.job.folder / "tampered.jsonl"
        for what, tampered, line, more in (("changed", changed, lost + 1, []), ("missing", lines[:lost] + lines[lost + 1:], lost + 1, []),
                                           ("reordered", swapped, lost, []), ("torn", lines[:-1] + [lines[-1][:50]], len(lines), []),
                                           ("truncated", lines[:-3], len(lines) - 3, ["--head", head])):
            path.write_text("".join(tampered))
            code, text = self.verify(path, *more)
            self.require(code == 1 and f"line {line}: {what}" in text, f"{what}: {code}, {text}")
        code, text = self.audit("verify", self.audit_log("a"))
        self.require(code == 2 and "--secret-file" in text, f"without the secret: {code}, {text}")
        broken = changed
        path.write_text("".join(broken))
        refused = subprocess.run([self.job.muster, "run", "--audit", path, "--secret-file", self.job.secret, "--job", "muster", "--", "/bin/true"],
                                 capture_output=True, text=True, timeout=60)
        self.require(refused.returncode == 78 and "left as it is" in refused.stderr, f"a broken log: {refused.returncode}, {refused.stderr}")
        self.require(path.read_text() == "".join(broken), "a broken log was written to")

    def check_answers(self):
        """What was found in one file is told and counts, whatever another file or the output does."""
        good, bad, none = self.audit_log("a"), self.job.folder / "tampered.jsonl", self.job.folder / "none"
        for files, expected in (((none, bad, good), 1), ((none, good), 2), ((bad, none), 1), ((good, good), 0)):
            code, text = self.verify(files[0], *files[1:])
            self.require(code == expected and text.count("holds: ") == files.count(good), f"verify of {files}: {code}, {text}")
        with open("/dev/full", "w") as full:
            done = subprocess.run([self.job.muster, "audit", "show", good, "--secret-file", self.job.secret], stdout=full,
                                  stderr=subprocess.PIPE, timeout=60)
        self.require(done.returncode == 2, f"show to a full disk ended with {done.returncode}")

    def run_alone(self, *options, program=("/bin/true",), environment=None):
        done = subprocess.run([self.job.muster, "run", "--quiet", *map(str, options), "--", *program], capture_output=True, text=True,
                              timeout=60, env=os.environ | (environment or {}))
        return done.returncode, done.stdout + done.stderr

    def check_names(self):
        """One file is one log, whatever leads to it; a job's name is what its records can hold."""
        log, other, link = (self.job.folder / name for name in ("alone.log", "other.log", "link.log"))
        self.require(self.run_alone("--audit", log)[0] == 0, "an agent alone")
        os.link(log, other)
        link.symlink_to(self.job.folder / "later.log")
        for options in (("--audit", log, "--events", log), ("--audit", log, "--events", other), ("--audit", log, "--account", other),
                        ("--audit", self.job.folder / "later.log", "--account", link), ("--audit", log, "--job", "j" * 300),
                        ("--audit", self.job.folder / "no" / "log"), ("--audit", log, "--job", b"\xff".decode(errors="surrogateescape"))):
            code, text = self.run_alone(*options)
            self.require(code == 78, f"run {options}: {code}, {text}")
        code, text = self.run_alone("--audit", other, "--node-name", "successor")
        self.require(code == 0 and "wrote it before" in text, f"another node goes on: {code}, {text}")
        code, text = self.audit("verify", log)
        self.require(code == 0 and "of the nodes" in text, f"a log of two nodes: {code}, {text}")
        code, text = self.run_alone(program=("/bin/sh", "-c", "echo audit=$MUSTER_AUDIT."), environment={"MUSTER_AUDIT": str(log)})
        self.require(code == 0 and "audit=." in text, f"a worker got its agent's --audit: {code}, {text}")

    def check_answer_to_azure(self):
        log = self.job.folder / "azure.log"
        fake = Azure()
        try:
            fake.schedule("E-1", "Preempt", 4)
            code, text = self.run_alone("--audit", log, "--notices", "azure", program=("/bin/sleep", "60"),
                                        environment={"MUSTER_METADATA_URL": fake.url})
            self.require(code == REQUEUE and fake.acknowledged == ["E-1"], f"a preemption: {code}, {fake.acknowledged}, {text}")
        finally:
            fake.close()
        _, text = self.audit("show", log)
        self.require("told Azure that it may begin with event E-1: no worker runs" in text, f"no record of the answer to Azure:\n{text}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, help="the build folder; default: build/dev")
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))

    def test():
        audited = Audited(options, "audit")
        try:
            audited.run()
        finally:
            audited.job.close()

    return run_tests([("a killed worker and a stranger are told, and tampering shows", test)], "audit")


if __name__ == "__main__":
    sys.exit(main())
