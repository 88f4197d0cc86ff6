"""What the leader costs by the size of the world: the production Coordinator forms it, loses a node of eight ranks and a tenth
of all nodes, and saves, also while it loses them. Without a peer."""
import collections
import json
import statistics
import subprocess

METRICS = (("sent_per_node", ""), ("received_per_node", ""), ("bytes_per_node", "B"), ("leader_ms", "ms"), ("encode_ms", "ms"),
           ("leader_kib_per_rank", "KiB"))


def scale(build, rounds):
    for ranks in (1_000, 10_000, 100_000):
        seen = collections.defaultdict(list)
        for _ in range(rounds):
            done = subprocess.run([str(build / "bin" / "bench_scale"), str(ranks)], capture_output=True, text=True, timeout=120)
            if done.returncode != 0:
                raise RuntimeError(f"bench_scale ended with {done.returncode}: {done.stderr.strip()[-300:]}")
            for line in done.stdout.splitlines():
                one = json.loads(line)
                seen[one["what"]].append(one)
        for what, ones in seen.items():
            for metric, unit in METRICS:
                yield {"bench": "scale", "case": f"{ranks} ranks, flat star: {what}", "metric": metric,
                       "unit": unit, "ours": round(statistics.median(one[metric] for one in ones), 1), "peer": "",
                       "peer_value": "", "ratio": None, "bound": None, "of_bound": None}
