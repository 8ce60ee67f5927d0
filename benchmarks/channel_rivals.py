"""Other tools at the multiply-accumulates that Secateur is measured at, without training.

    PYTHONPATH=RIVALS python benchmarks/channel_rivals.py --networks resnet20

`rival_tools.py` says what RIVALS has to hold and how each tool is driven. The calibration images,
the test images and the count of multiply-accumulates are those of `channels.py`. One row for each
network, share, draw, rival and recovery, into benchmarks/results/channel_rivals.csv as it is
measured; rows that are there are skipped. Where a tool fails, `result` says how.

Recoveries: "batchnorm" takes BatchNorm statistics anew on the calibration images; "onnxsim" is its
`apply_pruning_finetune`, "onnxsim-batchnorm" that and BatchNorms put in by its `bn_recovery`. Its
`correct_bias` is left out: it is for quantised networks, and took ResNet-20 further away.
"""

import argparse
import functools
import itertools
import time

from accuracy import SUBJECTS, Bench
from channels import SHARES
from options import add_files, add_half, numbers, words
from paper import images_of
from results_table import MACHINE, SCORES, append_row, key, machine, read_rows, scores
from rival_tools import RECOVERIES, RIVALS, AtShare, counted
from torch import Tensor

KEY = ("network", "data", "max_macs", "images", "draw", "half", "test_images", "rival", "recovery")
COLUMNS = (*KEY, "macs_fraction", "dense_top1", *SCORES, "result", *MACHINE)


def measure(
    bench: Bench, case: dict[str, object], images: Tensor, at_share: AtShare
) -> dict[str, object]:
    """The row of a case."""
    found: dict[str, object] = dict.fromkeys(COLUMNS, "")
    try:
        network = at_share(float(str(case["max_macs"])))
        network = RECOVERIES[str(case["recovery"])](network, images)
        share = counted(network, images) / counted(bench.model, images)
        found |= {
            "macs_fraction": f"{share:.4f}",
            **scores(bench.judge(network)),
            "result": "pruned",
        }
    except Exception as error:  # of another tool: whatever it raises is its result
        found["result"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return {**found, **case, "dense_top1": f"{bench.dense_top1:.2f}", **machine()}


def main() -> None:
    options = _options()
    for network in options.networks:
        bench = None
        for draw, rival in itertools.product(range(options.draws), options.rivals):
            at_share = images = None
            shares = options.macs or SHARES[network]
            for share, recovery in itertools.product(shares, RIVALS[rival].recoveries):
                case = {
                    "network": network,
                    "data": "real",
                    "max_macs": share,
                    "images": options.images,
                    "draw": draw,
                    "half": options.half,
                    "test_images": SUBJECTS[network].test_images,
                    "rival": rival,
                    "recovery": recovery,
                }
                if key(case, KEY) in {key(row, KEY) for row in read_rows(options.out)}:
                    continue
                bench = bench or Bench(network, options.data, options.half)
                if images is None or at_share is None:
                    images = images_of(bench, network, "real", draw, options.images).tensor
                    at_share = functools.lru_cache(1)(RIVALS[rival].prepare(bench.model, images))
                row = measure(bench, case, images, at_share)
                append_row(options.out, COLUMNS, row)
                shown = f"{row['top1']} (KL {row['kl']}) at {row['macs_fraction']}"
                print(
                    *(time.strftime("%H:%M"), network, rival, recovery, share, draw, shown),
                    row["result"],
                    flush=True,
                )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Other tools at equal multiply-accumulates.")
    parser.add_argument("--networks", type=words, default=list(SHARES))
    parser.add_argument("--macs", type=numbers, help="shares left, such as 0.7,0.5; by network")
    parser.add_argument("--rivals", type=lambda text: text.split(";"), default=list(RIVALS))
    parser.add_argument("--images", type=int, default=1000, help="calibration images")
    parser.add_argument("--draws", type=int, default=1, help="choices of the images")
    add_half(parser)
    add_files(parser, "channel_rivals.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
