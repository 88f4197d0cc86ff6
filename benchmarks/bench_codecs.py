"""The codecs' rows of scripts/bench: medians over the rounds of one program, which measures the roof in each."""
import importlib.util
import statistics
import subprocess
import time

ROUNDS = 9
MEMORY_MIB, CACHE_MIB = 64, 1
TORCH_REASON = "PyTorch: skipped, no module torch (pip install --target build/torch torch, then PYTHONPATH=build/torch)"


def measured(build, mib):
    """{case: (median GB/s of float32, median part of the roof)} in the order of the program."""
    done = subprocess.run([str(build / "bin" / "bench_codecs"), str(ROUNDS), str(mib)], capture_output=True, text=True,
                          timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"bench_codecs ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    samples = {}
    for line in done.stdout.splitlines():
        case, speed, part = line.split("|")
        samples.setdefault(case, []).append((float(speed), float(part)))
    return {case: tuple(statistics.median(column) for column in zip(*values)) for case, values in samples.items()}


def torch_bf16():
    """GB/s of float32 of PyTorch's conversion to bfloat16 on one thread, or None."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch
    torch.set_num_threads(1)
    values = torch.randn(MEMORY_MIB << 18)
    out = torch.empty(values.shape, dtype=torch.bfloat16)
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        out.copy_(values)
        times.append(time.perf_counter() - began)
    return 4 * values.numel() / 1e9 / statistics.median(times)


def codecs(build, rounds):
    torch_speed = torch_bf16()
    if torch_speed is None:
        print(TORCH_REASON)
    for mib, place in ((MEMORY_MIB, "memory"), (CACHE_MIB, "cache")):
        results = measured(build, mib)
        copy = results["memcpy"][0]
        for case, (speed, part) in results.items():
            peer, peer_value = "memcpy", copy
            if torch_speed is not None and case == "bf16 encode" and place == "memory":
                peer, peer_value = "PyTorch copy_ to bfloat16", torch_speed
            # In the cache there is no roof of memory; of a peer's program it is not known what it moves.
            bounded = place == "memory" and part > 0
            yield {"bench": "codecs", "case": f"{case}, {place}", "metric": "float32", "unit": "GB/s",
                   "ours": round(speed, 2), "peer": peer, "peer_value": round(peer_value, 2),
                   "ratio": round(speed / peer_value, 3), "bound": round(results["roof"][0], 2) if bounded else None,
                   "of_bound": round(part, 3) if bounded else None}
