"""What `secateur.advise` takes beside one call of `prune` on the same samples.

    python benchmarks/advice.py --networks minilm efficientnet_lite0 --minilm MINILM

Wall-clock of `prune` to 50 % zeros by the default recipe, and of `advise` with its defaults, given
the same samples: of these `prune` takes 1000 at most, `advise` 192; `fits` and `latency` are the
parts of `advise`. Run it on an idle machine. Rows of benchmarks/results/advice.csv with the same
settings are replaced.
"""

import argparse
import time
import warnings
from pathlib import Path

import torch
from options import add_files
from patterns import Encoder, Pictures
from results_table import MACHINE, key, machine, read_rows, write_rows

import secateur

KEY = ("network", "samples", "threads")
COLUMNS = (*KEY, "prune_seconds", "advise_seconds", "ratio", "fits", "latency", *MACHINE)


def main() -> None:
    options = _options()
    warnings.simplefilter("ignore", secateur.SecateurWarning)
    torch.set_num_threads(options.threads)
    for name in options.networks:
        bench = (
            Encoder(options.data, options.minilm)
            if name == "minilm"
            else Pictures(name, options.data, "choose")
        )
        samples, times = bench.samples(0, options.samples), [time.perf_counter()]
        secateur.prune(bench.model, samples, sparsity=0.5, progress=False)
        times.append(time.perf_counter())
        advice = secateur.advise(bench.model, samples, progress=False)
        times.append(time.perf_counter())
        prune, advise = times[1] - times[0], times[2] - times[1]
        print(advice)
        row = {
            "network": name,
            "samples": options.samples,
            "threads": options.threads,
            "prune_seconds": f"{prune:.1f}",
            "advise_seconds": f"{advise:.1f}",
            "ratio": f"{advise / prune:.2f}",
            "fits": f"{advice.seconds['fits']:.1f}",
            "latency": f"{advice.seconds['latency']:.1f}",
            **machine(),
        }
        rows = [of for of in read_rows(options.out) if key(of, KEY) != key(row, KEY)]
        write_rows(options.out, COLUMNS, [*rows, row])
        print(row, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=("minilm", "efficientnet_lite0"))
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minilm", type=Path, default=Path("minilm"), help="folder of the package")
    add_files(parser, "advice.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
