"""Fakes of three clouds' metadata services on the loopback address, after their manuals: what they demand of a caller,
what they answer when nothing is planned and when something is. Each can be slow, fail, or lie.

AWS: EC2 User Guide, "Use IMDSv2", "Spot Instance interruption notices". GCP: "Access VM metadata", "Preemptible VM
instances". Azure: "Scheduled Events for Linux VMs".
"""
import datetime
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Service:
    """One fake. `mode`: "well"; "slow" (answers take `delay` seconds); "failing" (500); "lying" (200 and a page of some
    other service); "dropping" (the connection ends without an answer)."""

    def __init__(self):
        self.mode, self.delay = "well", 0.0
        self.calls = []
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                fake._serve(self, "GET", b"")

            def do_PUT(self):
                fake._serve(self, "PUT", self._body())

            def do_POST(self):
                fake._serve(self, "POST", self._body())

            def _body(self):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    def _serve(self, handler, method, body):
        with self.lock:
            self.calls.append((method, handler.path))
        if self.mode == "slow":
            time.sleep(self.delay)
        if self.mode == "dropping":
            handler.close_connection = True
            return
        if self.mode == "failing":
            return self._send(handler, 500, "internal error")
        if self.mode == "lying":
            return self._send(handler, 200, "<html>Please log in to use this network</html>")
        try:
            status, text, headers = self.answer(method, handler.path, handler.headers, body)
        except KeyError:
            status, text, headers = 404, "not found", {}
        self._send(handler, status, text, headers)

    @staticmethod
    def _send(handler, status, text, headers=None):
        data = text.encode()
        try:
            handler.send_response(status)
            for name, value in (headers or {}).items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:
            pass  # the caller's deadline was over


def iso(seconds_ahead):
    when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds_ahead)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


class Aws(Service):
    def __init__(self):
        self.interruption = self.rebalance = None
        self.tokens = set()
        super().__init__()

    def interrupt(self, seconds=120, action="terminate"):
        self.interruption = json.dumps({"action": action, "time": iso(seconds)})

    def recommend_rebalance(self):
        self.rebalance = json.dumps({"noticeTime": iso(0)})

    def forget_tokens(self):
        self.tokens.clear()

    def answer(self, method, path, headers, _body):
        if path == "/latest/api/token":
            if method != "PUT" or not headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
                return 400, "Bad Request", {}
            token = secrets.token_urlsafe(40)
            self.tokens.add(token)
            return 200, token, {}
        if headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return 401, "Unauthorized", {}
        text = {"/latest/meta-data/spot/instance-action": self.interruption,
                "/latest/meta-data/events/recommendations/rebalance": self.rebalance}[path]
        return (200, text, {}) if text else (404, "<?xml version='1.0'?><title>404 - Not Found</title>", {})


class Gcp(Service):
    def __init__(self):
        self.preempted, self.maintenance = "FALSE", "NONE"
        super().__init__()

    def answer(self, _method, path, headers, _body):
        if headers.get("Metadata-Flavor") != "Google":
            return 403, "Missing Metadata-Flavor:Google header.", {}
        text = {"/computeMetadata/v1/instance/preempted": self.preempted,
                "/computeMetadata/v1/instance/maintenance-event": self.maintenance}[path]
        return 200, text, {"Metadata-Flavor": "Google", "Content-Type": "application/text"}


class Azure(Service):
    """The first question for events turns the service on and takes `first_delay` seconds."""

    def __init__(self, machine="vm_0", first_delay=0.0):
        self.machine, self.first_delay = machine, first_delay
        self.incarnation, self.events, self.acknowledged = 1, [], []
        self.on = False
        super().__init__()

    def schedule(self, event="E-1", kind="Preempt", seconds=30, machines=None, status="Scheduled"):
        when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
        self.events = [{"EventId": event, "EventStatus": status, "EventType": kind, "ResourceType": "VirtualMachine",
                        "Resources": machines or [self.machine], "Description": "", "EventSource": "Platform",
                        "DurationInSeconds": -1,
                        "NotBefore": "" if status == "Started" else when.strftime("%a, %d %b %Y %H:%M:%S GMT")}]
        self.incarnation += 1

    def cancel(self):
        self.events = []
        self.incarnation += 1

    def answer(self, method, path, headers, body):
        parts = urlsplit(path)
        if headers.get("Metadata") != "true" or "api-version" not in parse_qs(parts.query):
            return 400, json.dumps({"error": "Bad request"}), {}
        if parts.path == "/metadata/instance/compute/name":
            return 200, self.machine, {}
        if parts.path != "/metadata/scheduledevents":
            raise KeyError(path)
        if method == "POST":
            self.acknowledged += [entry["EventId"] for entry in json.loads(body)["StartRequests"]]
            return 200, "", {}
        if not self.on:
            time.sleep(self.first_delay)
            self.on = True
        return 200, json.dumps({"DocumentIncarnation": self.incarnation, "Events": self.events}), {}
