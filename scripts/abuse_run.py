"""Abuses secateur for a while, and keeps what breaks it.

    scripts/abuse --seconds 3600
    scripts/abuse --target onnx --seconds 60 --seed 3
    scripts/abuse --again abuse-faults/onnx-KeyError_in_plan__place

Parts: "fuzz" gives broken files to everything that reads files, "kill" kills commands at random
moments, "disk" runs them on full and read-only disks and under odd names, and changes files while
they are read. The law: a result, or one sentence and everything as it was.

Exit status 1 when a fault was found; what led to it is then in the folder of --out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

try:
    if "--again" in sys.argv:
        raise ImportError("one input needs no guide")
    import atheris
except ImportError:  # or there is no such wheel for this system
    import abuse_targets
else:
    with (
        contextlib.redirect_stderr(io.StringIO()),  # a line for each module
        atheris.instrument_imports(include=["secateur"], enable_loader_override=False),
    ):
        import abuse_targets

import torch
from abuse_base import Outcome
from abuse_disk import disk
from abuse_fuzz import check, fuzz
from abuse_kill import kill
from abuse_runs import warm

_SHARES = {"fuzz": 0.55, "kill": 0.3, "disk": 0.15}  # of the time
_TARGETS = {**abuse_targets.TARGETS, **abuse_targets.PLANTED}


def main() -> int:
    """Runs all parts, or those asked for, and prints what they tried and found."""
    options = _options()
    begin = time.monotonic()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.again:
        return again(options.again)
    if options.out.exists() and any(options.out.iterdir()):
        print(f"{options.out} is not empty, expected a new folder: mend what is in it, remove it")
        return 2
    wanted = ["fuzz"] if options.target else [options.part] if options.part else [*_SHARES]
    if wanted != ["fuzz"] or not options.target:
        warm()
    outcomes = []
    for part in wanted:
        left = options.seconds - (time.monotonic() - begin)
        rest = wanted[wanted.index(part) :]
        seconds = max(1.0, left * _SHARES[part] / sum(_SHARES[name] for name in rest))
        outcomes.append(_run(part, options.target, seconds, options.seed, options.out))
        print(outcomes[-1], flush=True)
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    for fault in faults:
        print(f"FAULT  {options.out / fault}")
    print(f"{len(faults)} faults found in {time.monotonic() - begin:.0f} s, seed {options.seed}")
    return 1 if faults else 0


def _options() -> argparse.Namespace:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("scripts/abuse", description=__doc__, formatter_class=kind)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all; default: 60")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument("--part", choices=[*_SHARES], help="this one only")
    parser.add_argument("--target", choices=[*_TARGETS], help="of the fuzzer: this one only")
    parser.add_argument("--out", type=Path, default=Path("abuse-faults"), help="for what fails")
    parser.add_argument("--again", type=Path, metavar="FOLDER", help="try a failing input again")
    return parser.parse_args()


def _run(part: str, target: str | None, seconds: float, seed: int, out: Path) -> Outcome:
    parts: dict[str, Callable[[float, int, Path, Path], Outcome]] = {"kill": kill, "disk": disk}
    ram = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None) as name:
        scratch = Path(name).resolve()
        if part != "fuzz":
            return parts[part](seconds, seed, scratch, out)
        targets = {target: _TARGETS[target]} if target else abuse_targets.TARGETS
        return fuzz(targets, seconds, seed, scratch, out)


def again(folder: Path) -> int:
    """Tries a failing input of the fuzzer again, in this process."""
    target = _TARGETS[(folder / "target.txt").read_text().strip()]
    with tempfile.TemporaryDirectory() as scratch:
        case = Path(shutil.copytree(folder / "case", Path(scratch) / "case"))
        fault, detail = check(target, case)
    print(detail or "no fault")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
