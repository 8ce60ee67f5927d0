"""Part "disk": full and read-only disks, odd names, and files that change while they are read.

The law: the whole result, or one sentence and everything as it was.
"""

from __future__ import annotations

import ctypes
import io
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import torch
from abuse_base import Outcome, keep
from abuse_fuzz import in_child
from abuse_runs import Command, Run, commands, everything, fresh, make_inputs, told, wrong
from onnx import TensorProto, helper
from safetensors.torch import save

from secateur.data.sources import load_images
from secateur.errors import SecateurError
from secateur.export.packing import pack, unpack
from secateur.frontends.onnx.file import read
from secateur.frontends.torch.checkpoints import read_state

_NAMES = (
    "out", "a b", "a\nb", "ü", "\udcff", "x" * 255, "x" * 256, "é" * 127, "-o", "*", "[0]", "a.b.c",
    "no/such/folder/out", "file/out", "~", "%s", "\x1b[2J", "out/", "link", "dangling", "file", "",
)  # fmt: skip


def disk(seconds: float, seed: int, scratch: Path, out: Path) -> Outcome:
    """All of it in turns, with other sizes each time."""
    outcome = Outcome("disk", "runs")
    inputs, rng = scratch / "inputs", Random(seed)
    make_inputs(inputs)
    held = commands(inputs)
    counts = {name: (0, list[str]()) for name in _WAYS}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, way in sorted(_WAYS.items(), key=lambda _: rng.random()):
            for word in sorted(held, key=lambda _: rng.random())[: 4 if name == "changing" else 2]:
                if time.monotonic() > end:
                    break
                arena = fresh(scratch / "arena")
                fault = way(held[word], arena, rng)
                tried, faults = counts[name]
                if fault:
                    again = f"scripts/abuse --part disk --seed {seed}"
                    faults.append(keep(out, f"disk-{name}-{word}", arena, fault[:80], fault, again))
                counts[name] = tried + 1, faults
                if name == "changing":
                    break
    for name, (tried, faults) in counts.items():
        outcome.add(name, tried, faults)
    return outcome


def _judge(command: Command, place: Path, around: Path, prepare: Any = lambda: None) -> str:
    """Runs a command; what is wrong with how it ended and with what it left."""
    before = everything(around)
    run = Run([*command.words, "-o", str(place)], around.parent, prepare)
    status, text = run.wait()
    if fault := told(status, text):
        return fault
    after = everything(around)
    if status:
        return "" if after == before else f"left {sorted(set(after) ^ set(before))}: {text}"
    changed = [name for name, content in before.items() if after.get(name) != content]
    if changed:
        return f"changed {changed}"
    if any(name.endswith(".partial") for name in after):
        return f"left behind {sorted(after)}"
    files = [place / name for name in command.files] or [place]
    return max((wrong(file) for file in files), default="")


def _full(command: Command, arena: Path, rng: Random) -> str:
    """A disk of some kilobytes."""
    with _mounted(arena / "disk", f"size={4 * rng.randrange(1, 900)}k") as place:
        if place is None:
            return _limited(command, arena, rng)
        if rng.random() < 0.5:
            return _judge(command, place / "out", place)
        return "" if command.files == () else _judge(command, place, place)  # the disk itself


def _limited(command: Command, arena: Path, rng: Random) -> str:
    """Files of so many bytes at most, as quotas do."""
    most = rng.choice((0, 1, 100, 4096, 30_000, rng.randrange(2_000_000)))
    return _judge(
        command,
        arena / "out",
        arena,
        # the log is a file too, so it gets as much
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (max(most, 2000),) * 2),
    )


def _read_only(command: Command, arena: Path, rng: Random) -> str:
    with _mounted(arena / "disk", "size=1m") as place:
        place = place or fresh(arena / "folder")
        inside = place / "out"
        if command.files and rng.random() < 0.5:
            inside.mkdir()
        if not _mount("-o", "remount,ro", str(place)):
            place.chmod(0o500)
            if os.access(place, os.W_OK):
                return ""  # for root there is no such folder
        return _judge(command, inside, place)


def _named(command: Command, arena: Path, rng: Random) -> str:
    (arena / "file").write_text("mine")
    (arena / "target").mkdir() if rng.random() < 0.5 else (arena / "target").write_text("mine")
    (arena / "link").symlink_to(arena / "target")
    (arena / "dangling").symlink_to(arena / "nowhere")
    name = rng.choice(_NAMES)
    place = Path(os.path.join(arena, name))
    if os.path.isdir(place) and not command.files:
        return ""
    return _judge(command, place, arena)


# Files that change


def _changing(_: Command, arena: Path, rng: Random) -> str:
    """What was read is one version of a file or the other, or the reader says so."""
    name = rng.choice(sorted(_READERS))
    make, look = _READERS[name]
    path = arena / f"a{name}"
    versions = [make(1.0), make(2.0)]
    path.write_bytes(versions[0])
    writer = os.fork()
    if writer == 0:
        _rewrite(path, versions, rng)
    try:
        status, text = _in_fork(lambda: _look(look, path, arena), arena.parent / "log.txt")
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    return "" if status == 0 else f"{name}: status {status}: {text[-2000:]}"


def _look(look: Callable[[Path], set[float]], path: Path, arena: Path) -> None:
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        try:
            found = look(path)
        except SecateurError:
            continue
        assert len(found) == 1, f"mixed: {found}"


def _rewrite(path: Path, versions: list[bytes], rng: Random) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    way, index = rng.randrange(4), 0
    while True:
        index += 1
        content = versions[index % 2]
        with suppress(OSError):
            match way:
                case 0:  # in place
                    with path.open("r+b") as file:
                        file.write(content)
                case 1:  # cut first
                    path.write_bytes(content)
                case 2:
                    path.with_name("new").write_bytes(content)
                    path.with_name("new").replace(path)
                case 3:
                    path.unlink(missing_ok=True)
                    time.sleep(0.001 * rng.random())
                    path.write_bytes(content)
        time.sleep(0.01 * rng.random())


def _values(array: Any) -> set[float]:
    return set(np.unique(np.asarray(array)).tolist())


def _safetensors(value: float) -> bytes:
    return save({"w": torch.full((300_000,), value)})


def _packs(path: Path) -> set[float]:
    for name in ("packed", "back.safetensors"):
        path.with_name(name).unlink(missing_ok=True)
    pack(path, path.with_name("packed"))
    unpack(path.with_name("packed"), path.with_name("back.safetensors"))
    return _values(read_state(path.with_name("back.safetensors"))["w"])


def _model(value: float) -> bytes:
    x, y = (helper.make_tensor_value_info(of, TensorProto.FLOAT, ["n", 600]) for of in "xy")
    weight = onnx.numpy_helper.from_array(np.full((600, 600), value, "f"), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight]
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _weights(path: Path) -> set[float]:
    return _values(onnx.numpy_helper.to_array(read(path).graph.initializer[0]))


def _checkpoint(value: float) -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.full((300_000,), value)}, file)
    return file.getvalue()


def _npz(value: float) -> bytes:
    file = io.BytesIO()
    np.savez(file, images=np.full((40, 3, 40, 40), value, "f"))
    return file.getvalue()


_READERS: dict[str, tuple[Callable[[float], bytes], Callable[[Path], set[float]]]] = {
    ".safetensors": (_safetensors, lambda path: _values(read_state(path)["w"])),
    ".packs.safetensors": (_safetensors, _packs),
    ".onnx": (_model, _weights),
    ".pt": (_checkpoint, lambda path: _values(read_state(path)["w"])),
    ".npz": (_npz, lambda path: _values(load_images(path).tensor)),
}

_WAYS: dict[str, Callable[[Command, Path, Random], str]] = {
    "full": _full,
    "limited": _limited,
    "read-only": _read_only,
    "named": _named,
    "changing": _changing,
}


def _in_fork(work: Callable[[], None], log: Path) -> tuple[int, str]:
    status = in_child(work, log, 60)
    return status, log.read_text(errors="replace")


@contextmanager
def _mounted(place: Path, options: str) -> Iterator[Path | None]:
    """A disk in memory; None where this user may not mount one."""
    place.mkdir()
    if not _mount("-t", "tmpfs", "-o", options, "none", str(place)):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _mount(*words: str) -> bool:
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0
