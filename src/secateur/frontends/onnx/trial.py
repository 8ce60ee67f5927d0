"""A program of its own: runs an ONNX model once, so that what it does to a process stays there.

ONNX Runtime dies of some malformed models (a transposed convolution with zero groups divides by
zero), and others never end or ask for all memory. So the first run of a model is this program's,
started by `first_run.trial`; it imports neither torch nor secateur, and takes 0.2 s more than the
run.

    python trial.py THREADS MODEL_BYTES BATCH [FILE] < model and inputs (.npz) > outputs (.npz)

FILE is that of a model over 2 GB, which does not come by standard input (MODEL_BYTES = 0).
BATCH is the number of samples per run; 0 = all at once or, where the model cannot, one by one.
Exit status 3 with one line on standard error: onnxruntime's reason why it cannot run the model.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]  # by name, each with the samples on its first axis


def limit_memory() -> None:
    """Half of the machine's memory at most, so that the system need not kill anything."""
    with contextlib.suppress(ImportError, ValueError, OSError, AttributeError):
        import resource

        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        resource.setrlimit(resource.RLIMIT_AS, (half, half))


def run(model: bytes | str, feed: Arrays, threads: int, batch: int) -> Arrays:
    """Outputs of a model or a file for all samples, and how many were run at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # as the nodes say it
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feed.values())))

    def outputs(size: int) -> list[Any]:
        parts = [slice(at, at + size) for at in range(0, count, size)]
        fed = [{name: array[part] for name, array in feed.items()} for part in parts]
        runs = [session.run(None, part) for part in fed]
        return [joined(of, min(size, count)) for of in zip(*runs, strict=True)]

    try:
        batch = batch or count
        found = outputs(batch)
    except Exception:
        if batch != count or batch == 1:
            raise
        batch = 1
        found = outputs(batch)
    held = {f"output{index}": of for index, of in enumerate(found) if of is not None}
    return held | {"batch": np.array(batch)}


def joined(parts: tuple[Any, ...], size: int) -> np.ndarray | None:
    """An output for all samples; None when it is not a tensor of numbers with a batch axis.

    That is the first of as many entries as there are samples in a part, or the first of all.
    """
    arrays = all(isinstance(part, np.ndarray) and part.dtype != object for part in parts)
    if not arrays or parts[0].ndim == 0:
        return None
    axis = next((axis for axis, held in enumerate(parts[0].shape) if held == size), 0)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def main() -> None:
    """Standard output is for the result alone; what libraries print goes to standard error."""
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    limit_memory()
    threads, size, batch = (int(text) for text in sys.argv[1:4])
    model: bytes | str = sys.stdin.buffer.read(size)
    model = sys.argv[4] if len(sys.argv) > 4 else model
    with np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False) as held:
        feed = {name: held[name] for name in held.files}
    try:
        found = run(model, feed, threads, batch)
    except Exception as error:  # onnxruntime's own kinds, MemoryError
        sys.stderr.write(" ".join((str(error) or type(error).__name__).split()) + "\n")
        sys.exit(3)
    file = io.BytesIO()
    np.savez(file, **found)  # type: ignore[arg-type]
    result.write(file.getvalue())
    result.close()


if __name__ == "__main__":
    main()
