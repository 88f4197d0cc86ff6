"""The Python that has torch, for the peers that need it, from MUSTER_BENCH_TORCH; or None. The variable is taken out of the
environment, since agents refuse variables of that name that they do not know."""
import os

TORCH = os.environ.pop("MUSTER_BENCH_TORCH", None)
