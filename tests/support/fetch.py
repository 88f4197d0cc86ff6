"""Packages of peers that a test compares with, fetched into the build folder and nowhere else."""
import subprocess
import sys
from pathlib import Path


def fetch(package, folder, *options):
    """`package` in `folder`, which becomes a place that Python imports from. None, or why it is not there."""
    folder = Path(folder)
    if not (folder / package.replace("-", "_")).exists():
        fetched = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *options, "--target", folder, package],
                                 capture_output=True, text=True, timeout=120)
        if fetched.returncode != 0:
            return f"the {package} package cannot be fetched: {fetched.stderr.strip()[-300:]}"
    sys.path.insert(0, str(folder))
    return None
