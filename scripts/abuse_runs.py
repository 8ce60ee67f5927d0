"""Command lines in forks of this process, which has imported PyTorch already."""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save_file
from torch import nn

import secateur
from secateur.cli import main as program
from secateur.cli.app import COMMANDS

_NET = """from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
"""
_RECIPE = 'method = "magnitude"\nallocation = "uniform"\nrecalibration = "none"\n'


@dataclass(frozen=True)
class Command:
    """A command line without its output, and the files that it writes there; none = one file."""

    words: tuple[str, ...]
    files: tuple[str, ...] = ()


def commands(inputs: Path) -> dict[str, Command]:
    """The commands, whose inputs `make_inputs` has made."""
    common = (f"{inputs}/net.py:build", "--data", f"{inputs}/images.npz", "--include", "*")
    common += ("--recipe", f"{inputs}/fast.toml")
    pruned = ("model.safetensors", "report.json", "report.html")
    swept = ("sweep.json", "sweep.html", "report-0.5.json", "report-0.6.json")
    return {
        "pack": Command(("pack", f"{inputs}/large.safetensors")),
        "unpack": Command(("unpack", f"{inputs}/large.packed")),
        "prune": Command(("prune", *common, "--sparsity", "0.5"), pruned),
        "sweep": Command(("sweep", *common, "--sparsities", "0.5,0.6"), swept),
    }


@functools.cache
def warm() -> None:
    """Imports in this process what each run would import in its own."""
    from secateur.render.page import report_page

    for name in COMMANDS:
        importlib.import_module(f"secateur.cli.commands.{name}")
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    how = {"method": "magnitude", "allocation": "uniform"}
    report_page(secateur.prune(net, torch.rand(40, 4), sparsity=0.5, **how).report)


def make_inputs(inputs: Path) -> None:
    """A network, images, a recipe that takes no time, and a file of some megabytes."""
    inputs.mkdir()
    (inputs / "net.py").write_text(_NET)
    (inputs / "fast.toml").write_text(_RECIPE)
    rng = np.random.default_rng(0)
    np.savez(inputs / "images.npz", images=rng.normal(size=(40, 1, 6, 6)).astype("f"))
    weights = torch.randn(500_000, generator=torch.Generator().manual_seed(0)).relu()
    save_file({"w": weights}, inputs / "large.safetensors")
    call = ["pack", f"{inputs}/large.safetensors", "-o", f"{inputs}/large.packed"]
    status, text = Run(call, inputs).wait()
    assert status == 0, text


class Run:
    """A command line in a forked process; its output is kept."""

    def __init__(
        self, words: list[str], folder: Path, prepare: Callable[[], Any] = lambda: None
    ) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}.txt"
        self.process = os.fork()
        if self.process == 0:
            _run(words, self.log, prepare)

    def kill(self, number: int) -> None:
        os.kill(self.process, number)

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """Exit status, or minus the signal, and what it printed."""
        end, done, status = time.monotonic() + seconds, 0, 0
        while not done:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if not done and time.monotonic() > end:
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
                return 124, "hangs\n"
            time.sleep(0.002)
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return os.waitstatus_to_exitcode(status), text


def _run(words: list[str], log: Path, prepare: Callable[[], Any]) -> None:
    status = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # dies with the harness
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)
        sys.argv = ["secateur", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()
        program.main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def wrong(path: Path) -> str:
    """What is wrong with a file that was written; empty where it is whole."""
    try:
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".html":
                assert path.read_text().rstrip().endswith("</html>")
            case ".safetensors":
                load(path.read_bytes())  # of a name it has to be UTF-8
            case _:
                assert path.stat().st_size > 100_000
    except Exception as error:
        return f"{path.name} is not whole: {error!r}"
    return ""


def told(status: int, text: str) -> str:
    """What is wrong with how a command ended; empty for success, and for one sentence."""
    errors = [line for line in text.splitlines() if line.startswith("secateur: error: ")]
    if status == 0 and "Traceback" not in text:
        return ""
    if status == 2 and len(errors) == 1 and "Traceback" not in text:
        return ""
    return f"status {status}: {text[-3000:]}"


def everything(folder: Path) -> dict[str, tuple[bool, bytes]]:
    """What is in a folder, hidden files included."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(folder))] = path.is_symlink(), content
    return found


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
