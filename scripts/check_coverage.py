"""Fails when the numeric core is covered by fewer lines and branches than it was; run by test."""

import subprocess
import sys

CORE = """
    adaptation alignment blocks folding fractals geometry linear_algebra noise patterns problem
    recipe search steps stream targets tuning walk
    allocations/normalized_magnitude allocations/protocol allocations/sensitivity
    allocations/uniform
    methods/adam_calibration methods/admm methods/bias_correction methods/least_squares
    methods/protocol methods/weight_correction
"""
LEAST = 95

files = ",".join(f"*/secateur/{name}.py" for name in CORE.split())
command = ["-m", "coverage", "report", f"--include={files}", f"--fail-under={LEAST}"]
sys.exit(subprocess.run([sys.executable, *command], check=False).returncode)
