#!/usr/bin/env python3
"""What a kubelet does to pods, played on this machine: preStop, SIGTERM to process 1 of the pod, SIGKILL at the deadline
that counts from the deletion. A pod is an agent in a process namespace of its own, as in deploy/kubernetes/job.yaml."""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from rig import (REQUEUE, TOP, Failure, Job, gpt, newest_version, processes_with, require_no_processes, run_tests, wait_until,
                 weights_of)
from jobs import free_port  # noqa: E402, from scripts/, which rig adds

sys.path.insert(0, str(TOP / "tests" / "support"))
from fetch import fetch  # noqa: E402

GRACE = 20  # terminationGracePeriodSeconds
FOREVER = 100000000


class Pod:
    def __init__(self, job, name, program, nodes):
        self.job, self.name = job, name
        self.state = job.folder / f"state-{name}-{time.monotonic_ns()}"
        self.state.mkdir()
        self.address = f"127.0.0.1:{free_port()}"
        self.killed = False
        events = self.state / "events.jsonl"
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", job.muster, "run", "--nnodes", nodes, "--nproc", 1,
                   "--rdzv", f"127.0.0.1:{job.port}", "--secret-file", job.secret, "--node-name", name, "--grace", GRACE - 3,
                   "--notice-listen", self.address, "--ready-file", self.state / "ready", "--live-file", self.state / "live",
                   "--events", events, "--", *program]
        self.output = open(self.state / "output", "wb")
        self.process = subprocess.Popen([str(part) for part in command], stdout=self.output, stderr=self.output,
                                        start_new_session=True, stdin=subprocess.DEVNULL)
        self.output.close()

    def said(self):
        return (self.state / "output").read_text(errors="replace")

    def init(self):
        """Process 1 of the pod, as this machine numbers it."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None

    def ready(self):
        return (self.state / "ready").exists()

    def steps(self):
        return len(re.findall(r"\] step \d+/", self.said()))

    def delete(self, prestop):
        """As the kubelet deletes a pod. Returns the container's exit code, or None where SIGKILL was needed."""
        deadline = time.monotonic() + GRACE
        if prestop:
            try:
                subprocess.run([self.job.muster, "notice", "--to", self.address, "--wait", "--wait-seconds", str(GRACE - 4),
                                f"node {GRACE - 3} preStop"], capture_output=True, timeout=GRACE)
            except subprocess.TimeoutExpired:
                pass
        try:
            init = self.init()
            if init:
                os.kill(init, signal.SIGTERM)
        except OSError:
            pass  # it has ended during preStop
        try:
            return self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self):
        self.killed = True
        if self.process.poll() is None:
            self.process.kill()  # --kill-child: the namespace goes with it
            self.process.wait(10)


class Kubelet:
    def __init__(self, build):
        self.job = Job(build, "kubelet")
        self.pods = []
        self.number = 0

    def close(self):
        for pod in self.pods:
            pod.kill()
        self.job.close()

    def begin(self, count, steps):
        self.number += 1
        self.job.new_launch()
        self.checkpoints = self.job.folder / f"checkpoints-{self.number}"
        self.summary = self.job.folder / f"summary-{self.number}"
        self.program = gpt(self.job.build, steps, "--checkpoint-dir", self.checkpoints, "--checkpoint-every", 100,
                           "--summary", self.summary)
        return [self.pod(index, f"1:{count}") for index in range(count)]

    def pod(self, index, nodes):
        pod = Pod(self.job, f"train-{index}", self.program, nodes)
        self.pods.append(pod)
        if index == 0:  # it holds the rendezvous; the others look for it until it is there
            time.sleep(0.3)
        return pod

    def wait_world(self, pods, size):
        wait_until(lambda: any(f" world {size} " in pod.said()[-4000:] for pod in pods), 60, f"a world of {size}; they said:\n"
                   + "\n".join(pod.said()[-1500:] for pod in pods))

    def delete_all(self, pods, prestop):
        codes = {}
        threads = [threading.Thread(target=lambda pod=pod: codes.update({pod.name: pod.delete(prestop)})) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return codes

    def require_orderly(self, codes, pods):
        if any(code != REQUEUE for code in codes.values()):
            raise Failure(f"exit codes {codes}, not {REQUEUE} (None: killed at the deadline):\n" + "\n".join(
                re.sub(r".*(\] step|save (started|durable|verified)).*\n", "", pod.said())[-3000:] for pod in pods))
        for pod in pods:
            if "safe to kill" not in pod.said():
                raise Failure(f"{pod.name} did not say that it can be killed")

    # ---- tests

    def one_pod(self, prestop):
        pods = self.begin(3, FOREVER)
        self.wait_world(pods, 3)
        wait_until(lambda: all(pod.ready() for pod in pods), 30, "all pods to be ready")
        began = time.monotonic()
        self.require_orderly({"train-2": pods[2].delete(prestop)}, pods[2:])
        took = time.monotonic() - began
        self.wait_world(pods[:2], 2)
        if pods[2].ready():
            raise Failure("the deleted pod says that it is ready")
        revoked = [event for pod in pods[:2] for event in self.events(pod) if event["event"] == "revoked"]
        if revoked:
            raise Failure(f"a planned leave revoked a view: {revoked}")
        fresh = self.pod(3, "1:3")  # the Job replaces it
        # A pod that has not come so far has no handler yet, and process 1 then ignores SIGTERM.
        wait_until(fresh.ready, 30, "the fresh pod to be ready")
        self.require_orderly(self.delete_all([*pods[:2], fresh], prestop), [*pods[:2], fresh])
        print(f"kubelet: the deleted pod was gone after {took:.1f} s of {GRACE} s", flush=True)

    def all_pods(self):
        steps = 1500
        quiet = self.begin(1, steps)
        if quiet[0].process.wait(120) != 0:
            raise Failure(f"the undisturbed training failed:\n{quiet[0].said()[-2000:]}")
        expected = weights_of(self.summary)
        pods = self.begin(3, steps)
        self.wait_world(pods, 3)
        self.require_orderly(self.delete_all(pods, True), pods)
        saved = newest_version(self.checkpoints)
        if not 0 < saved < steps:
            raise Failure(f"version {saved} was saved")
        self.job.new_launch()
        fresh = [self.pod(index, "1:2") for index in range(2)]
        for pod in fresh:
            if pod.process.wait(120) != 0:
                raise Failure(f"the resumed training failed:\n{pod.said()[-2000:]}")
        if f"resumed: version {saved}" not in fresh[0].said() + fresh[1].said():
            raise Failure(f"it did not resume from version {saved}")
        if weights_of(self.summary) != expected:
            raise Failure("the weights differ from the undisturbed training's")

    def a_hanging_program(self):
        """A worker that is stopped cannot save: the agent ends the pod itself, before the kubelet would, and says what is lost."""
        pods = self.begin(1, FOREVER)
        wait_until(lambda: newest_version(self.checkpoints) >= 100, 60, "a periodic save")
        for pid, command in processes_with(str(self.checkpoints)).items():
            if Path(command.split()[0]).name == "gpt":
                os.kill(pid, signal.SIGSTOP)
        code = pods[0].delete(False)
        if code != REQUEUE or pods[0].killed:
            raise Failure(f"the pod ended with {code}:\n{pods[0].said()[-2000:]}")
        if not re.search("steps after it are NOT|NOT saved|no member is left to save", pods[0].said()):
            raise Failure(f"it did not say what is lost:\n{pods[0].said()[-2000:]}")

    @staticmethod
    def events(pod):
        path = pod.state / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def manifest_is_valid(peers):
    if missing := fetch("kubernetes-validate", peers):
        return missing
    import kubernetes_validate
    import yaml
    documents = list(yaml.safe_load_all((TOP / "deploy" / "kubernetes" / "job.yaml").read_text()))
    if [document["kind"] for document in documents] != ["Service", "PodDisruptionBudget", "PersistentVolumeClaim", "Job"]:
        raise Failure("the manifest holds other kinds than it should")
    for document in documents:
        try:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            raise Failure(f"{document['kind']}: {error}") from None
    # A check that accepts everything is none.
    documents[-1]["spec"]["template"]["spec"]["terminationGracePeriod"] = 3
    try:
        kubernetes_validate.validate(documents[-1], kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError:
        return None
    raise Failure("a field that does not exist was accepted")


def scripts_are_valid():
    for path in sorted((TOP / "deploy").glob("*/*")):
        if path.suffix in (".sbatch", ".pbs", ".lsf"):
            done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
            if done.returncode != 0:
                raise Failure(f"{path.name}: {done.stderr}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    parser.add_argument("--only", default="", help="run only the tests with this in their titles")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    if subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode != 0:
        print("kubelet: skipped, no process namespaces here (unshare --pid)")
        return 77
    test = Kubelet(options.build)

    def ended(function, *arguments):
        def run():
            try:
                function(*arguments)
                require_no_processes(test.job)
            finally:
                for pod in test.pods:
                    pod.kill()
        return run

    try:
        tests = [("one pod of three, SIGTERM", ended(test.one_pod, False)),
                 ("one pod of three, preStop", ended(test.one_pod, True)),
                 ("all pods, resumed with fewer", ended(test.all_pods)),
                 ("a program that hangs", ended(test.a_hanging_program)),
                 ("the manifest against the published schemas", lambda: manifest_is_valid(test.job.build / "peers" / "kubernetes")),
                 ("the batch scripts are shell", scripts_are_valid)]
        return run_tests([entry for entry in tests if options.only in entry[0]], "kubelet")
    finally:
        test.close()


if __name__ == "__main__":
    sys.exit(main())
