"""Runs of the command line that are killed at random moments, and what the same command then gives.

    python benchmarks/resume.py

ResNet-20 at 80 % zeros with a walk on the way and blocks trained, on a few images of CIFAR-10. It
is run undisturbed first, then with a work folder, which times the longest step, then again from
that folder, which has nothing to do. Then, for each row, it is killed with `kill -9` and the same
command is given again. Most moments are drawn evenly from the run; every fifth is while the files
of the result are written. `lost` is how much longer both calls took than an undisturbed one and a
second start (imports, reading, tracing, up to the first step): the step that was under way, and a
pass forward; of a kill while it writes, the evaluation and the writing.
"""

import argparse
import hashlib
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from options import add_files
from results_table import MACHINE, append_row, machine

KEY = ("network", "images", "sparsity", "kill")
COLUMNS = (
    *KEY,
    "while",
    "at_seconds",
    "steps_kept",
    "again_seconds",
    "lost_seconds",
    "undisturbed_seconds",
    "starting_seconds",
    "finished_seconds",
    "longest_step_seconds",
    "same_bytes",
    *MACHINE,
)
PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
import networks, shared_data
def build(): return networks.load_resnet20(Path({data!r}))
def images(): return shared_data.cifar10_calibration(Path({data!r}), count={count}, draw=0)
"""


class Run:
    """The command, in a folder of its own."""

    def __init__(self, place: Path, options: argparse.Namespace) -> None:
        self.place, self.sparsity = place, options.sparsity
        text = PROGRAM.format(
            folder=str(Path(__file__).parent), data=str(options.data), count=options.images
        )
        (place / "network.py").write_text(text)

    def start(self, out: str, work: str | None) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "secateur", "prune", "network.py:build", "--quiet"]
        command += ["--data", "network.py:images", "--sparsity", str(self.sparsity), "--onnx"]
        command += ["-o", out] + ([] if work is None else ["--work-dir", work])
        return subprocess.Popen(command, cwd=self.place, stdout=subprocess.DEVNULL)

    def seconds(self, out: str, work: str | None) -> float:
        """How long it takes when nobody disturbs it."""
        began = time.perf_counter()
        process = self.start(out, work)
        if process.wait():
            raise RuntimeError(f"the command ended with {process.returncode}")
        return time.perf_counter() - began

    def killed(self, out: str, work: str, after: float, *, writing: bool) -> float | None:
        """Kills it after some seconds, or so long after it has begun to write; when that was.

        None where it was done before that.
        """
        began = time.perf_counter()
        process = self.start(out, work)
        while writing and not self._writes(out) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(after)
        done = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        return None if done else time.perf_counter() - began

    def _writes(self, out: str) -> bool:
        """Whether there is a file in the hidden folder of the result; not in a rehearsal's."""
        return any(self.place.glob(f".{out}.*.partial/*"))

    def steps(self, work: str) -> list[Path]:
        """The entries of a work folder in their order."""
        entries = (self.place / work / "entries").rglob("*.safetensors")
        return sorted(entries, key=lambda path: path.stat().st_mtime_ns)

    def digest(self, out: str) -> str:
        """Of the network's files, and of the report but for seconds and the folder's note."""
        found = hashlib.sha256()
        for name in ("model.safetensors", "model.onnx"):
            found.update((self.place / out / name).read_bytes())
        report = json.loads((self.place / out / "report.json").read_text())
        report.pop("seconds")
        report["notes"] = [note for note in report["notes"] if "work folder" not in note]
        found.update(json.dumps(report, sort_keys=True).encode())
        return found.hexdigest()


def longest_step(entries: list[Path]) -> float:
    times = [path.stat().st_mtime for path in entries]
    return max(after - before for before, after in itertools.pairwise(times))


def measure(run: Run, options: argparse.Namespace) -> None:
    undisturbed = run.seconds("plain", None)
    wanted = run.digest("plain")
    began = time.time()
    run.seconds("first", "whole")
    starting = (run.place / "whole" / "journal.json").stat().st_mtime - began
    finished = run.seconds("second", "whole")
    if {run.digest("first"), run.digest("second")} != {wanted}:
        raise RuntimeError("a work folder alone changes what comes out")
    longest = longest_step(run.steps("whole"))
    print(f"undisturbed {undisturbed:.1f} s, finished {finished:.1f} s, a step {longest:.2f} s")
    rng = random.Random(options.seed)
    for kill in range(options.first, options.kills):
        writing, at = kill % 5 == 4, None
        for number in itertools.count():
            out, work = f"out{kill}-{number}", f"run{kill}-{number}"
            after = rng.uniform(0, 0.4) if writing else rng.uniform(2, undisturbed)
            at = run.killed(out, work, after, writing=writing)
            if at is not None:
                break
        steps = run.steps(work)
        again = run.seconds(out, work)
        row = {
            "network": "resnet20",
            "images": options.images,
            "sparsity": options.sparsity,
            "kill": kill,
            "while": "writing" if writing else chapter(steps),
            "at_seconds": f"{at:.2f}",
            "steps_kept": len(steps),
            "again_seconds": f"{again:.2f}",
            "lost_seconds": f"{at + again - undisturbed - starting:.2f}",
            "undisturbed_seconds": f"{undisturbed:.2f}",
            "starting_seconds": f"{starting:.2f}",
            "finished_seconds": f"{finished:.2f}",
            "longest_step_seconds": f"{longest:.2f}",
            "same_bytes": run.digest(out) == wanted,
            **machine(),
        }
        append_row(options.out, COLUMNS, row)
        print({name: row[name] for name in COLUMNS[3:9]}, row["same_bytes"], flush=True)


def chapter(steps: list[Path]) -> str:
    """What was under way: the part of the run that the last step belongs to."""
    return steps[-1].parent.name.rsplit("-", 1)[0] if steps else "before the first step"


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs that are killed and go on.")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--first", type=int, default=0, help="number of the first kill")
    parser.add_argument("--seed", type=int, default=0)
    add_files(parser, "resume.csv")
    options = parser.parse_args()
    options.data = options.data.resolve()
    with tempfile.TemporaryDirectory() as place:
        measure(Run(Path(place), options), options)


if __name__ == "__main__":
    main()
