"""A sentence encoder in PyTorch: floats, dense INT8, and INT8 with 1 x 4 blocks of zeros.

    PYTHONPATH=TOKENIZERS python benchmarks/accelerated.py --model MINILM

The encoder is pruned to 70 % in blocks of 1 x 4 (400 training sentences of STS-B without their
scores, 32 tokens), and accelerated with sentences padded to 128 tokens. All forms run in one
process on one thread, in turns, in another order each round, on 8 sentences of 128 tokens. Times
are processor times, so that other work on the machine weighs on them less: medians over the rounds;
ratios are medians of the rounds' own ratios. Accuracy is that of the very module that is timed: the
rank correlation (Spearman) on the dev pairs.

Dense INT8: "dynamic" is PyTorch's `quantize_dynamic` with each of its engines for x86, "static" is
`secateur.accelerate` with dense kernels only, on the dense weights. Both say what INT8 alone
brings; the pruned module against the fastest of them is what pruning brings on top.

`sentence_encoder.py` says what MINILM and TOKENIZERS hold. Writes
benchmarks/results/accelerated.csv anew.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from options import add_files, numbers
from results_table import MACHINE, machine, write_rows
from sentence_encoder import LENGTH, SentenceEncoder, Sentences, load_encoder
from torch import nn

import secateur
from secateur.evaluation.inference import first_output
from secateur.network.samples import Samples

BATCH = 8
COLUMNS = (
    "form",
    "pattern",
    "sparsity",
    "spearman",
    "median_ms",
    "times_as_fast_as_float",
    "times_as_fast_as_best_dense_int8",
    "sparse_layers",
    "dense_layers",
    "float_layers",
    "tokens",
    "batch",
    "threads",
    "rounds",
    *MACHINE,
)
DENSE_INT8 = ("dynamic INT8, fbgemm", "dynamic INT8, x86", "static INT8, dense")


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    model, sentences = load_encoder(options.model), Sentences(options.data, options.model)
    forms = {"float32": (model, None, 0.0)}
    for engine in ("fbgemm", "x86"):
        forms[f"dynamic INT8, {engine}"] = (dynamic(model, engine), None, 0.0)
    padded = calibration(sentences, options.sentences)
    static = accelerated(model, padded, ["dense"])
    forms["static INT8, dense"] = (static.model, static.report, 0.0)
    tokens = sentences.calibration(400, 32, 0)
    for sparsity in options.sparsities:
        pruned = pruned_encoder(model, tokens, sparsity, options.keep)
        found = accelerated(pruned, padded, ["sparse", "dense", "float"])
        forms[f"1x4 INT8 at {sparsity:.0%}"] = (found.model, found.report, sparsity)
        print(found.report, flush=True)
    spearman = {name: judged(sentences, of) for name, (of, *_) in forms.items()}
    times = timed([of for of, *_ in forms.values()], sentences, options.rounds)
    rows = list(_rows(forms, spearman, dict(zip(forms, times, strict=True)), options.rounds))
    write_rows(options.out, COLUMNS, rows)
    for row in rows:
        print(*(row[name] for name in COLUMNS[:7]), sep="\t")


def calibration(sentences: Sentences, count: int) -> Samples:
    """Sentences padded to the length that the module will be run with."""
    return Samples(sentences.calibration(count, LENGTH, 1)).of_length(LENGTH)


def accelerated(model: nn.Module, samples: Samples, kernels: list[Any]) -> secateur.Acceleration:
    return secateur.accelerate(model, samples.tensors, batch=BATCH, kernels=kernels)


def dynamic(model: nn.Module, engine: str) -> nn.Module:
    """PyTorch's own dense INT8, which quantises inputs anew in each run."""
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)


def pruned_encoder(
    model: SentenceEncoder, tokens: dict[str, torch.Tensor], sparsity: float, keep: Path | None
) -> nn.Module:
    """Pruned by the default recipe; read from a folder where it was kept."""
    path = None if keep is None else keep / f"pruned-1x4-{sparsity}.pt"
    if path is not None and path.exists():
        return torch.load(path, weights_only=False)
    result = secateur.prune(model, tokens, sparsity=sparsity, pattern="1x4", progress=False)
    if path is not None:
        torch.save(result.model, path)
    return result.model


def judged(sentences: Sentences, model: nn.Module) -> float:
    return sentences.spearman(lambda tokens: first_output(model, Samples(tokens)))


def timed(models: list[nn.Module], sentences: Sentences, rounds: int) -> np.ndarray:
    """Milliseconds of processor time (models, rounds), in turns."""
    samples = calibration(sentences, BATCH)
    ids = torch.randint(1000, 20000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(samples.tensors["attention_mask"])
    runs = [_bound(of, ids, mask) for of in models]
    found, rng = np.zeros((len(models), rounds)), np.random.default_rng(0)
    with torch.inference_mode():
        for run in runs * 3:
            run()
        for number in range(rounds):
            for index in rng.permutation(len(models)):
                start = time.process_time()
                runs[index]()
                found[index, number] = 1e3 * (time.process_time() - start)
    return found


def _bound(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[], Any]:
    return lambda: model(input_ids=ids, attention_mask=mask)


def _rows(
    forms: dict[str, Any], spearman: dict[str, float], times: dict[str, np.ndarray], rounds: int
) -> Any:
    dense = min(DENSE_INT8, key=lambda name: float(np.median(times[name])))
    for name, (_, report, sparsity) in forms.items():
        yield {
            "form": name,
            "pattern": "1x4" if sparsity else "",
            "sparsity": f"{sparsity:.2f}",
            "spearman": f"{spearman[name]:.4f}",
            "median_ms": f"{statistics.median(times[name]):.1f}",
            "times_as_fast_as_float": _ratio(times["float32"], times[name]),
            "times_as_fast_as_best_dense_int8": _ratio(times[dense], times[name]),
            **{
                f"{kernel}_layers": "" if report is None else report.count(kernel)
                for kernel in ("sparse", "dense", "float")
            },
            "tokens": LENGTH,
            "batch": BATCH,
            "threads": 1,
            "rounds": rounds,
            **machine(),
        }


def _ratio(one: np.ndarray, other: np.ndarray) -> str:
    return f"{np.median(one / other):.2f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A sentence encoder in INT8 and 1 x 4 blocks.")
    parser.add_argument("--model", type=Path, default=Path("/tmp/minilm"), metavar="MINILM")
    parser.add_argument("--sparsities", type=numbers, default=[0.7])
    parser.add_argument("--sentences", type=int, default=128, help="to accelerate with")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="folder for pruned encoders, which are reused")
    add_files(parser, "accelerated.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
