#!/usr/bin/env python3
"""What agents show to Prometheus, of a training of two nodes that loses a worker; and callers that mean no good."""
import argparse
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

from rig import Failure, Job, gpt, run_tests, wait_until

from jobs import free_port

FOREVER = 100000000


class Metrics:
    def __init__(self, build):
        self.job = Job(build, "metrics")

    def close(self):
        self.job.close()

    @staticmethod
    def scrape(port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            if answer.headers["Content-Type"] != "text/plain; version=0.0.4; charset=utf-8":
                raise Failure(f"the type is {answer.headers['Content-Type']}")
            text = answer.read().decode()
        for line in text.splitlines():
            if not re.fullmatch(r'# (HELP|TYPE) muster_\w+ .+|muster_\w+(\{(\w+="[^"]*",?)*\})? \S+', line):
                raise Failure(f"no line of the text format: {line}")
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}

    def scrape_all(self, ports):
        """The larger value of each: steps and what was read back are seen where rank 0 is, views where the leader is."""
        seen = {}
        for port in ports.values():
            for name, value in self.scrape(port).items():
                seen[name] = max(value, seen.get(name, value))
        return seen

    def start(self):
        self.job.new_launch()
        ports = {name: free_port() for name in ("n0", "n1")}
        program = gpt(self.job.build, FOREVER, "--checkpoint-dir", self.job.folder / "checkpoints", "--checkpoint-every", 20)
        agents = {}
        for name, port in ports.items():  # n0 first, which leads: it has the store
            agents[name] = self.job.start(name, 1, program, "1:2", extra=["--metrics-listen", f"127.0.0.1:{port}"])
            wait_until(lambda one=agents[name]: any("node joined" in line for line in one.lines) or name == "n1", 30, "a leader")
        def trains():
            seen = self.scrape_all(ports)
            return seen["muster_world_size"] == 2 and seen['muster_save_verified_version{tier="shared"}'] > 0
        for agent in agents.values():
            wait_until(lambda one=agent: any("view ready" in line for line in one.lines), 60, "a view")
        wait_until(trains, 60, "steps of two, and a save that was read back")
        return ports, agents

    def training(self):
        ports, agents = self.start()
        before, at_step = self.scrape(ports["n0"]), self.scrape_all(ports)["muster_step"]
        agents["n1"].signal_node(signal.SIGKILL)
        wait_until(lambda: self.scrape(ports["n0"])["muster_world_size"] == 1, 60, "a world of one")
        wait_until(lambda: self.scrape(ports["n0"])["muster_step"] > at_step + 20, 60, "more steps")
        after = self.scrape(ports["n0"])
        for name, least in (('muster_events_total{kind="node lost"}', 1), ("muster_step_seconds_count", 20),
                            ("muster_generation", 1), ("muster_view_change_seconds_count", 1),
                            ('muster_saves_durable_total{tier="shared"}', 0), ('muster_save_bytes_total{tier="shared"}', 0)):
            if after[name] - before[name] < least:
                raise Failure(f"{name} was {before[name]}, and is {after[name]}")
        if not 0 < after["muster_step_seconds_sum"] < 120 or after["muster_frozen"] != 0:
            raise Failure(f"steps took {after['muster_step_seconds_sum']} s; frozen {after['muster_frozen']}")
        self.end(agents["n0"])

    def callers(self):
        """Who asks for something else, says nothing, or takes no answer, keeps nobody else from an answer."""
        ports, agents = self.start()
        for path in ("/", "/metrics/", "/notice"):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{ports['n0']}{path}", timeout=10)
                raise Failure(f"{path} was answered")
            except urllib.error.HTTPError as error:
                if error.code != 404 or b"GET /metrics" not in error.read():
                    raise Failure(f"{path} got {error.code}") from None
        idle = [socket.create_connection(("127.0.0.1", ports["n0"])) for _ in range(50)]
        for connection in idle[:20]:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")  # and never reads
        idle[30].sendall(b"\0" * 100 + b"\r\n\r\n")
        if not idle[30].recv(1000).startswith(b"HTTP/1.1 400"):
            raise Failure("bytes that are no request were taken")
        step = self.scrape_all(ports)["muster_step"]
        wait_until(lambda: self.scrape_all(ports)["muster_step"] > step + 5, 30, "more steps")
        for connection in idle:
            connection.close()
        self.end(*agents.values())

    def refused(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            for address, words in ((f"127.0.0.1:{taken.getsockname()[1]}", "choose another port"), ("9464", "HOST:PORT")):
                done = subprocess.run([self.job.muster, "run", "--metrics-listen", address, "--", "true"], capture_output=True,
                                      text=True, timeout=30)
                if done.returncode != 78 or words not in done.stderr or "--metrics-listen" not in done.stderr:
                    raise Failure(f"{address}: {done.returncode} {done.stderr}")

    @staticmethod
    def end(*agents):
        for agent in agents:
            agent.signal(signal.SIGTERM)
        for agent in agents:
            agent.wait(60)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    options = parser.parse_args()
    test = Metrics(options.build)
    try:
        return run_tests([("a training that loses a node", test.training), ("callers that mean no good", test.callers),
                          ("addresses that are refused", test.refused)], "metrics")
    finally:
        test.close()


if __name__ == "__main__":
    sys.exit(main())
