"""The GPU's rows of scripts/bench: the codecs and the canonical fold on a device beside a copy within it, and PyTorch's casts
and int8 quantisation there. Medians over turns."""
import statistics
import subprocess
import tempfile
from pathlib import Path

from torch_python import not_measured, torch_python

TURNS, ROUNDS_OF_A_TURN, MIB = 3, 3, 512
SKIPPED = 77
TORCH_SCRIPT = Path(__file__).parent / "codecs_torch.py"


def run(command, output=subprocess.PIPE):
    """Its exit status, and the fields of each line that it printed, or its last words."""
    done = subprocess.run([str(word) for word in command], stdout=output, stderr=subprocess.PIPE, timeout=600)
    words = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode != 0:
        return done.returncode, words[-1] if words else "no word"
    return 0, [line.split("|") for line in (done.stdout or b"").decode().splitlines()]


def row(case, ours=None, of_roof=None, peer=None, peer_value=None, peers=None):
    return {"bench": "gpu", "case": case, "metric": "float32", "unit": "GB/s", "ours": ours and round(ours, 1), "peer": peer,
            "peer_value": peer_value and round(peer_value, 1), "ratio": round(ours / peer_value, 3) if peer_value else None,
            "bound": None, "of_bound": of_roof and round(of_roof, 3),
            "peers": {name: round(value, 1) for name, value in (peers or {}).items()}}


def gpu(build, rounds):
    program, (python, _) = build / "bin" / "bench_gpu", torch_python()
    ours, torchs, missing, lacking = {}, {}, {}, None if python else not_measured("PyTorch")
    with tempfile.NamedTemporaryFile() as values:
        status, words = run([program, "values", MIB], values)
        if status != 0:
            raise RuntimeError(f"{program} wrote no values and ended with {status}: {words}")
        for _ in range(TURNS):
            status, lines = run([program, ROUNDS_OF_A_TURN, MIB])
            if status == SKIPPED:
                yield row("all", peer=f"not measured: {lines}")
                return
            if status != 0:
                raise RuntimeError(f"{program} ended with {status}: {lines}")
            for case, speed, part in lines:
                ours.setdefault(case, []).append((float(speed), float(part)))
            status, lines = run([python, TORCH_SCRIPT, ROUNDS_OF_A_TURN, values.name, "cuda"]) if not lacking else (0, [])
            if status != 0:
                lacking = f"PyTorch: not measured ({lines})"
                continue
            for case, way, speed in lines:
                if speed.startswith("missing "):
                    missing[f"{case} by {way}"] = f"{way}: not measured ({speed.removeprefix('missing ')})"
                else:
                    torchs.setdefault(case, {}).setdefault(way, []).append(float(speed))
    for case, samples in ours.items():
        speed, part = (statistics.median(column) for column in zip(*samples))
        peers = {way: statistics.median(speeds) for way, speeds in torchs.get(case, {}).items()}
        best = max(peers, key=peers.get, default=None)
        yield row(case, speed, part, best, peers.get(best), peers)
    for case, reason in missing.items():
        yield row(case, peer=reason)
    if lacking:
        yield row("casts and int8", peer=lacking)
