"""DeepSparse on x86: zeros anywhere in float32 convolutions and linear layers of ONNX files.

It has reached its end of life, is proprietary, and wants Python 3.8 to 3.11, so that Secateur never
installs it. Users who have it in an environment of its own name that environment's Python in
`SECATEUR_DEEPSPARSE`. `deepsparse_worker.py` runs there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.errors import ModelError
from secateur.hardware.runtimes.protocol import Engine, EngineOptions, Input, Runtime, unless

if TYPE_CHECKING:
    from secateur.hardware.layer_facts import LayerFacts
    from secateur.hardware.machine import Machine

PYTHON = "SECATEUR_DEEPSPARSE"  # environment variable: the Python of an environment that has it
_TIMEOUT_SECONDS = 60.0


def _layer(layer: LayerFacts) -> list[str]:
    found = unless(layer.kind in ("conv", "linear"), f"{layer.operation}: only conv and linear")
    found += unless(layer.groups == 1, f"{layer.groups} groups: only convolutions of one group")
    return found + unless(layer.dtype == "float32", f"{layer.dtype} weights: only float32 ones")


def _machine(machine: Machine) -> list[str]:
    if "deepsparse" in machine.versions:
        return []
    return [f"not found: name the Python of an environment that has it in {PYTHON}"]


def python() -> str:
    """The Python of the environment that has it; empty where users name none."""
    return os.environ.get(PYTHON, "")


@functools.cache
def version(interpreter: str) -> str:
    """The version that an environment's Python finds; empty where it finds none."""
    code = "import importlib.metadata as m; print(m.version('deepsparse'))"
    try:
        done = subprocess.run(
            [interpreter, "-c", code],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _found() -> bool:
    return bool(python()) and bool(version(python()))


class _Worker:
    """A file in DeepSparse, in a process of its own; a run costs a message there and back."""

    def __init__(self, path: Path, options: EngineOptions) -> None:
        self.folder = tempfile.TemporaryDirectory()
        program = Path(__file__).with_name("deepsparse_worker.py")
        variables = {name: of for name, of in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [python(), "-I", str(program)],  # -I: this folder has a deepsparse.py of its own
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=variables,
        )
        weakref.finalize(self, _end, self.process, self.folder)
        facts = self.ask(
            path=str(path.resolve()),
            threads=options.threads,
            batch=options.batch,
            shapes=[list(of) for of in options.shapes],
        )
        self.inputs = tuple(
            Input(name=of["name"], shape=tuple(of["shape"]), dtype=of["dtype"])
            for of in facts["inputs"]
        )
        self.given = False

    def ask(self, **message: Any) -> Any:
        """What the process answers."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
            answer = json.loads(stdout.readline() or "{}")
        except (OSError, ValueError) as error:
            answer = {"error": str(error)}
        if "error" in answer or not answer:
            raise ModelError(f"DeepSparse fails: {answer.get('error', 'it ended')}")
        return answer

    def run(self, feed: Mapping[str, np.ndarray]) -> None:
        """One inference; inputs are handed over once."""
        if not self.given:
            path = Path(self.folder.name) / "inputs.npz"
            np.savez(path, *feed.values())
            self.ask(values=str(path))
            self.given = True
        self.ask(run=1)


def _end(process: subprocess.Popen[str], folder: tempfile.TemporaryDirectory[str]) -> None:
    """Ends a process, and removes what it read."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()
    folder.cleanup()


def _start(path: Path, options: EngineOptions) -> Engine:
    worker = _Worker(path, options)
    return Engine(inputs=worker.inputs, run=worker.run, precision="not told")


RUNTIME = Runtime(
    name="DeepSparse",
    package="deepsparse",
    distributions=("deepsparse",),
    feature="zeros anywhere in float32 convolutions and linear layers, on x86",
    machine=_machine,
    layer=_layer,
    source="https://pypi.org/project/deepsparse/1.8.0",
    engines={"DeepSparse": _start},
    formats=(".onnx",),
    key="deepsparse",
    pattern="unstructured",
    prepared="written as an ONNX file in float32",
    found=_found,
)
