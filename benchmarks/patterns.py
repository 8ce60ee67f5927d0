"""Accuracy with zeros in a pattern: image networks, and the sentence encoder.

    PYTHONPATH=TOKENIZERS python benchmarks/patterns.py --networks minilm --patterns 2:4,1x4

One row for each network, pattern, sparsity, recipe and draw, into benchmarks/results/patterns.csv
as it is measured; rows that are there are skipped. A pattern n:m is measured in every layer that it
fits, a block at each of --sparsities. Image networks are judged as in `default.py`, by points of
top-1 lost; the encoder as in `sentences.py`, by what Spearman's correlation loses, on dev pairs,
which have no halves. `sentence_encoder.py` says what MINILM and TOKENIZERS hold. Seconds are
processor time of the whole `prune` call, on one thread.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from accuracy import SUBJECTS
from accuracy import Bench as ImageBench
from options import add_files, add_half, numbers, words
from results_table import MACHINE, append_row, key, machine, read_rows
from sentence_encoder import Sentences, load_encoder

import secateur
from secateur.evaluation.inference import first_output
from secateur.network.samples import Samples

ENCODER, SENTENCES, TOKENS = "minilm", 400, 32
KEY = ("network", "pattern", "sparsity", "recipe", "allocation", "draw", "samples", "half")
COLUMNS = (*KEY, "dense", "pruned", "drop", "drop_error", "zeros", "layers", "seconds", *MACHINE)


class Encoder:
    """The sentence encoder and its judgement."""

    def __init__(self, data: Path, package: Path) -> None:
        self.model, self.sentences = load_encoder(package), Sentences(data, package)
        self.dense = self._spearman(self.model)

    def samples(self, draw: int, count: int) -> Any:
        return self.sentences.calibration(count, TOKENS, draw)

    def judge(self, model: Any) -> dict[str, str]:
        found = self._spearman(model)
        return {
            "dense": f"{self.dense:.4f}",
            "pruned": f"{found:.4f}",
            "drop": f"{self.dense - found:.4f}",
            "drop_error": "",
        }

    def _spearman(self, model: Any) -> float:
        return self.sentences.spearman(lambda tokens: first_output(model, Samples(tokens)))


class Pictures:
    """A network of images and its judgement."""

    def __init__(self, name: str, data: Path, half: str) -> None:
        self.bench = ImageBench(name, data, half)
        self.model = self.bench.model

    def samples(self, draw: int, count: int) -> Any:
        bench = self.bench
        images = bench.subject.calibration(bench.folder, count=count, draw=draw)
        return secateur.load_images(images)

    def judge(self, model: Any) -> dict[str, str]:
        found = self.bench.judge(model)
        return {
            "dense": f"{self.bench.dense_top1:.2f}",
            "pruned": f"{found.top1:.2f}",
            "drop": f"{found.drop:.2f}",
            "drop_error": f"{found.drop_error:.3f}",
        }


def measure(bench: Encoder | Pictures, case: dict[str, Any]) -> dict[str, object]:
    """The row of a case."""
    samples = bench.samples(case["draw"], case["samples"])
    target = {"sparsity": case["sparsity"]} if case["sparsity"] else {}
    start = time.process_time()
    result = secateur.prune(
        bench.model,
        samples,
        pattern=case["pattern"],
        recipe=case["recipe"],
        allocation=case["allocation"],
        progress=False,
        **target,
    )
    seconds = time.process_time() - start
    zeros = [layer.zeros for layer in result.report.layers]
    return {
        **case,
        **bench.judge(result.model),
        "zeros": f"{result.report.sparsity:.6f}",
        "layers": sum(count > 0 for count in zeros),
        "seconds": f"{seconds:.1f}",
        **machine(),
    }


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    benches: dict[str, Encoder | Pictures] = {}
    for network, pattern, draw in itertools.product(
        options.networks, options.patterns, range(options.draws)
    ):
        for sparsity in [""] if ":" in pattern else options.sparsities:
            case = {
                "network": network,
                "pattern": pattern,
                "sparsity": sparsity,
                "recipe": options.recipe,
                "allocation": options.allocation,
                "draw": draw,
                "samples": SENTENCES if network == ENCODER else options.images,
                "half": "dev" if network == ENCODER else options.half,
            }
            if key(case, KEY) in {key(row, KEY) for row in read_rows(options.out)}:
                continue
            if network not in benches:
                benches[network] = (
                    Encoder(options.data, options.model)
                    if network == ENCODER
                    else Pictures(network, options.data, options.half)
                )
            row = measure(benches[network], case)
            append_row(options.out, COLUMNS, row)
            shown = f"{row['pruned']} of {row['dense']}, {row['drop']} lost, {row['seconds']} s"
            print(time.strftime("%H:%M"), network, pattern, sparsity, draw, shown, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy with zeros in a pattern.")
    parser.add_argument("--networks", type=words, default=[ENCODER, *SUBJECTS])
    parser.add_argument("--patterns", type=words, default=["2:4", "1x4"])
    parser.add_argument("--sparsities", type=numbers, default=[0.5, 0.6, 0.7], help="of blocks")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--allocation", default="sensitivity")
    parser.add_argument("--images", type=int, default=1000, help="calibration images")
    parser.add_argument("--draws", type=int, default=1, help="choices of the samples")
    parser.add_argument("--model", type=Path, default=Path("/tmp/minilm"), metavar="MINILM")
    add_half(parser)
    add_files(parser, "patterns.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
