"""The Python that runs the peers that need torch: MUSTER_BENCH_TORCH names it; otherwise it is this one or Debian's, whichever
can import torch and its distributed part. The variable is taken out of the environment, since agents refuse variables of
that name that they do not know."""
import functools
import os
import subprocess
import sys

NAMED = os.environ.pop("MUSTER_BENCH_TORCH", None)
DEBIANS = "/usr/bin/python3"
# The last word of a failed import is its reason.
PROBE = """
import importlib, platform, sys, torch, torch.distributed
if not torch.distributed.is_available(): raise ImportError("torch without its distributed part")
from importlib.metadata import version
more = "".join(f", {module} {version(module)}" for module in sys.argv[1:] if importlib.import_module(module))
print(f"torch {torch.__version__}{more} in Python {platform.python_version()}")
"""


def probe(python, *modules):
    """Whether it has torch and these, and its versions or the reason."""
    try:
        done = subprocess.run([python, "-c", PROBE, *modules], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    said = (done.stdout if done.returncode == 0 else done.stderr).strip()
    return done.returncode == 0, said.splitlines()[-1] if said else f"it ended with {done.returncode}"


@functools.cache
def torch_python(module=None):
    """The Python, with this module too, and its versions; or None and the reason."""
    reasons = []
    for python in [NAMED] if NAMED else dict.fromkeys([sys.executable, DEBIANS]):
        found, said = probe(python, *([module] if module else []))
        if found:
            return python, said
        reasons.append(f"{python}: {said}")
    return None, "; ".join(reasons) + "; see MUSTER_BENCH_TORCH in scripts/bench"


def not_measured(peer, module=None):
    """What a row says in place of a peer's name."""
    return f"{peer}: not measured ({torch_python(module)[1]})"
