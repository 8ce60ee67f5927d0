"""A sentence encoder: what is left of its judgement after pruning, and what pruning costs.

    PYTHONPATH=TOKENIZERS python benchmarks/sentences.py --model MINILM --cases default

Calibrated on training sentences of STS-B without their scores, cut at 32 tokens; judged by the
rank correlation (Spearman) of the embeddings' cosines with the scores of the dev pairs. The folder
has no test set: dev is where settings were chosen too. `sentence_encoder.py` says what MINILM and
TOKENIZERS hold.

Cases: "default" (three draws), "rivals" (other methods, see `rival_methods.py`; one draw), "files"
(the encoder as an ONNX and an OpenVINO file: the share of weights that is zero in both or in
neither of file and module, at 50 %: harder targets train blocks, which takes a module's gradients)
and "channels". Rows go to benchmarks/results/sentences.csv as they are
measured; those that are there are skipped.

The cost is that of the whole `prune` call over that of a dense forward pass over the same
sentences, the median of three right before it: in processor time on one thread, so that a busy
machine weighs on neither.
"""

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from options import add_files, numbers, words
from results_table import MACHINE, append_row, key, machine, read_rows
from rival_methods import GlobalMagnitude, SparseGPT, Wanda
from sentence_encoder import SentenceEncoder, Sentences, load_encoder
from torch import Tensor

import secateur
from secateur.evaluation.inference import first_output
from secateur.export.files import save_onnx, save_openvino
from secateur.frontends import open as open_model
from secateur.hardware.compare_latency import compare
from secateur.network.samples import Samples, chunk_size

METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "least-squares": {"method": "least-squares"},
    "paper": {"recipe": "paper"},
    "magnitude": {
        "recipe": secateur.Recipe(method=secateur.Magnitude(), allocation=GlobalMagnitude())
    },
    "sparsegpt": {"recipe": secateur.Recipe(method=SparseGPT(), allocation=secateur.Uniform())},
    "wanda": {"recipe": secateur.Recipe(method=Wanda(), allocation=secateur.Uniform())},
}
KEY = ("method", "target", "value", "file", "sentences", "tokens", "draw")
COLUMNS = (
    *KEY,
    "dense_spearman",
    "spearman",
    "drop",
    "sparsity",
    "macs_fraction",
    "masks_equal",
    "latency_low",
    "latency",
    "latency_high",
    "seconds",
    "forward_seconds",
    "ratio",
    *MACHINE,
)


class Bench:
    """The encoder, the sentences, and what was measured of the dense network."""

    def __init__(self, data: Path, package: Path) -> None:
        self.model, self.sentences = load_encoder(package), Sentences(data, package)
        open_model(self.model).trace(Samples(self.tokens(2, 32, 0)))  # imports the exporter

    @functools.cached_property
    def dense(self) -> float:
        return self.judge(self.model)

    def judge(self, model: Any) -> float:
        """Spearman's correlation of a module or a file."""
        return self.sentences.spearman(lambda tokens: first_output(model, Samples(tokens)))

    def tokens(self, sentences: int, length: int, draw: int) -> dict[str, Tensor]:
        return self.sentences.calibration(sentences, length, draw)

    @functools.cache  # noqa: B019
    def as_file(self, kind: str, folder: Path) -> Path:
        """The encoder as an ONNX or an OpenVINO file."""
        few = Samples(self.tokens(8, 32, 0))
        if kind == "onnx":
            save_onnx(self.model, folder / "dense.onnx", few, [])
            return folder / "dense.onnx"
        save_openvino(self.model, folder / "dense.xml", few)
        return folder / "dense.xml"

    @functools.cache  # noqa: B019
    def pruned_module(self, value: float, sentences: int, length: int, draw: int) -> Any:
        tokens = self.tokens(sentences, length, draw)
        return secateur.prune(self.model, tokens, sparsity=value, progress=False)


def measure(bench: Bench, case: dict[str, Any], folder: Path) -> dict[str, object]:
    """The row of a case."""
    at = case["sentences"], case["tokens"], case["draw"]
    tokens = bench.tokens(*at)
    dense = bench.dense
    model = bench.model if case["file"] == "module" else bench.as_file(case["file"], folder)
    pattern = {"pattern": "channels"} if case["target"] == "max_macs" else {}
    forward = forward_seconds(bench.model, tokens)
    start = time.process_time()
    result = secateur.prune(
        model,
        tokens,
        progress=False,
        **{case["target"]: case["value"]},
        **pattern,
        **METHODS[case["method"]],
    )
    seconds = time.process_time() - start
    spearman, report = bench.judge(result.model), result.report
    row = {
        **case,
        "dense_spearman": f"{dense:.4f}",
        "spearman": f"{spearman:.4f}",
        "drop": f"{dense - spearman:.4f}",
        "sparsity": f"{report.sparsity:.6f}",
        "macs_fraction": f"{report.macs_fraction:.4f}",
        "seconds": f"{seconds:.1f}",
        "forward_seconds": f"{forward:.2f}",
        "ratio": f"{seconds / forward:.1f}",
        **machine(),
    }
    if case["target"] == "max_macs":
        row |= latency(bench.model, result.model, tokens)
    if case["file"] != "module":
        pruned = bench.pruned_module(case["value"], *at)
        row["masks_equal"] = f"{equal_masks(pruned, bench.model, result, model):.6f}"
    return row


def forward_seconds(model: SentenceEncoder, tokens: dict[str, Tensor]) -> float:
    """Processor time of a dense pass, in chunks as `prune` runs it."""
    samples, times = Samples(tokens), list[float]()
    for _ in range(3):
        start = time.process_time()
        with torch.no_grad():
            for part in samples.split(chunk_size(samples)):
                model(**part.tensors)
        times.append(time.process_time() - start)
    return statistics.median(times)


def latency(dense: Any, pruned: Any, tokens: dict[str, Tensor]) -> dict[str, str]:
    """Time of one sentence of so many tokens on ONNX Runtime, against the dense network's."""
    _, found = compare([dense, pruned], Samples(tokens)[:4], "onnxruntime", seconds=20)
    names = {"latency_low": found.low, "latency": found.ratio, "latency_high": found.high}
    return {name: f"{value:.4f}" for name, value in names.items()}


def equal_masks(
    pruned: secateur.PruneResult, module: Any, file: secateur.PruneResult, source: Path
) -> float:
    """Share of the pruned weights that are zero in both networks or in neither.

    Layers of a file are known by their dense weights: names and order are the exporter's.

    Args:
        pruned: the pruned module.
        module: before it was pruned.
        file: the pruned file.
        source: before it was pruned.
    """
    was, one = open_model(module).tensors(), open_model(pruned.model).tensors()
    theirs, other = open_model(source).tensors(), open_model(file.model).tensors()
    traced = open_model(source).trace(file.images[:2]).layers
    names = {layer.name: str(layer.parameter) for layer in traced}
    same = total = 0
    for layer in file.report.layers:
        weight, mask = theirs[names[layer.name]], other[names[layer.name]] != 0
        (name,) = [
            f"{of.name}.weight"
            for of in pruned.report.layers
            if any(torch.equal(was[f"{of.name}.weight"], way) for way in (weight, weight.mT))
        ]
        mask = mask if torch.equal(was[name], weight) else mask.mT
        same, total = same + int((mask == (one[name] != 0)).sum()), total + mask.numel()
    return same / total


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All that is to be measured, the default recipe first."""
    common = {"sentences": options.sentences, "tokens": options.tokens}

    def sparsities(method: str, file: str, values: list[float], draws: int) -> Iterator[Any]:
        for draw, value in itertools.product(range(draws), values):
            yield {
                "method": method,
                "target": "sparsity",
                "value": value,
                "file": file,
                **common,
                "draw": draw,
            }

    if "default" in options.cases:
        yield from sparsities("default", "module", options.sparsities, options.draws)
    if "channels" in options.cases:
        for value in options.macs:
            yield {
                "method": "default",
                "target": "max_macs",
                "value": value,
                "file": "module",
                **common,
                "draw": 0,
            }
    if "files" in options.cases:
        for file in options.files:
            yield from sparsities("default", file, [0.5], 1)
    if "rivals" in options.cases:
        for method in options.methods:
            yield from sparsities(method, "module", options.sparsities, 1)


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    bench = Bench(options.data, options.model)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options):
            if key(case, KEY) in {key(row, KEY) for row in read_rows(options.out)}:
                continue
            row = measure(bench, case, Path(folder))
            append_row(options.out, COLUMNS, row)
            shown = " ".join(str(row[name]) for name in KEY)
            found = f"{row['spearman']} of {row['dense_spearman']}, {row['ratio']} passes"
            print(time.strftime("%H:%M"), shown, found, row.get("masks_equal", ""), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A sentence encoder after pruning.")
    parser.add_argument("--model", type=Path, default=Path("/tmp/minilm"), metavar="MINILM")
    parser.add_argument("--cases", type=words, default=["default", "channels", "files", "rivals"])
    parser.add_argument("--sparsities", type=numbers, default=[0.5, 0.7, 0.8])
    parser.add_argument("--macs", type=numbers, default=[0.7, 0.5])
    parser.add_argument("--files", type=words, default=["onnx", "ir"])
    parser.add_argument("--methods", type=words, default=list(METHODS)[1:])
    parser.add_argument("--draws", type=int, default=3, help="of the default recipe")
    parser.add_argument("--sentences", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=32, help="of a sentence at most")
    add_files(parser, "sentences.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
