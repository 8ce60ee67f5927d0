"""The harness for abuse finds what is planted, and its mutations get past the first checks."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
mutate = pytest.importorskip("abuse_mutate")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


def abuse(*words, folder):
    source = os.pathsep.join([str(SCRIPTS.parent / "src"), *sys.path])
    return subprocess.run(
        [sys.executable, SCRIPTS / "abuse_run.py", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_planted_fault_is_found_kept_and_found_again(tmp_path):
    done = abuse("--target", "planted", "--seconds", "2", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    kept = sorted((tmp_path / "abuse-faults").iterdir())
    assert kept
    assert f"{len(kept)} faults found" in done.stdout
    assert all((folder / "case" / "a.npz").is_file() for folder in kept)
    (crash,) = [folder for folder in kept if "died" in folder.name]
    (told, *_) = [folder for folder in kept if folder != crash]
    again = abuse("--again", str(told), folder=tmp_path)
    assert again.returncode == 1
    assert "Traceback" in again.stdout


def test_mutations_depend_on_the_seed_alone():
    case = {
        "a.json": b'{"a": [1, 2, {"b": "c"}]}',
        "a.csv": b"file,label\na,1\n",
        "a.png": b"12345",
    }
    first, second, other = (
        [mutate.mutate(case, rng) for _ in range(50)] for rng in (Random(1), Random(1), Random(2))
    )
    assert first == second
    assert first != other
    assert sum(of == case for of in first) < 10
    assert mutate.decode(mutate.encode(case)) == case
