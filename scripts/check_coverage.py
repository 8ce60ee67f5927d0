"""Fails when the numeric core is covered by fewer lines and branches than it was; run by test."""

import subprocess
import sys

CORE = "allocation geometry linear_algebra patterns problem walk methods/admm methods/least_squares"
LEAST = 95

files = ",".join(f"*/secateur/{name}.py" for name in CORE.split())
command = ["-m", "coverage", "report", f"--include={files}", f"--fail-under={LEAST}"]
sys.exit(subprocess.run([sys.executable, *command], check=False).returncode)
