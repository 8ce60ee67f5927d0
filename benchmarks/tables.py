"""Writes the result tables of README.md and docs from the CSV files in benchmarks/results.

    python benchmarks/tables.py          # rewrite what stands between the markers
    python benchmarks/tables.py --check  # exit status 1 when a page is not up to date

A table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. One without a CSV file is
said to be missing.
"""

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from results_table import FOLDER, read_rows
from scaling_model import KINDS as WORK
from scaling_model import PLANS, fitted

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "resnet20": "ResNet-20, CIFAR-10",
    "resnet56": "ResNet-56, CIFAR-10",
    "efficientnet_lite0": "EfficientNet-Lite0, ImageNet",
    "resnet50": "ResNet-50, random weights",
    "vit_large": "ViT-L/16, random weights",
    "digits_transformer": "ViT, scikit-learn digits",
    "minilm": "MiniLM",
    "vit_base": "ViT-B/16, random weights",
}
HEADINGS = {  # (method, inputs) of the accuracy columns, in their order
    ("magnitude", "none"): "magnitude",
    ("least-squares", "dense"): "least squares, dense inputs",
    ("least-squares", "pruned"): "least squares, pruned inputs",
    ("admm", "dense"): "ADMM, dense inputs",
    ("admm", "pruned"): "ADMM, pruned inputs",
}
MISSING = "Not measured yet."

Row = dict[str, str]
Table = Callable[[Path], str]


def table_of(file: str) -> Callable[[Callable[[Sequence[Row]], str]], Table]:
    """Makes a table of a file's rows one of a folder of results, which may lack the file."""

    def reading(table: Callable[[Sequence[Row]], str]) -> Table:
        @functools.wraps(table)
        def read(folder: Path) -> str:
            rows = read_rows(folder / file)
            return table(rows) if rows else MISSING

        return read

    return reading


@table_of("accuracy.csv")
def accuracy(rows: Sequence[Row]) -> str:
    """Top-1 by network and sparsity."""
    _check_comparable(rows)
    columns = [pair for pair in HEADINGS if _where(rows, method=pair[0], inputs=pair[1])]
    heads = ["network", "dense", "zeros", *(HEADINGS[pair] for pair in columns)]
    lines = []
    for name, sparsity in sorted({(row["network"], row["sparsity"]) for row in rows}, key=_order):
        here = _where(rows, network=name, sparsity=sparsity)
        cells = [_top1(_where(here, method=method, inputs=inputs)) for method, inputs in columns]
        dense = f"{float(here[0]['dense_top1']):.1f}"
        lines.append([NAMES.get(name, name), dense, f"{float(sparsity):.0%}", *cells])
    return f"{_markdown(heads, lines)}\n\n{_accuracy_notes(rows)}"


@table_of("default.csv")
def default(rows: Sequence[Row]) -> str:
    """The default recipe in short: accuracy by number of images."""
    lines = [
        [
            NAMES[network],
            f"{float(here[0]['dense_top1']):.1f}",
            f"{float(sparsity):.0%}",
            f"{images} {KINDS[kind]}",
            _top1(here),
            _points_lost(here),
        ]
        for (network, sparsity, kind, images, recipe), here in _defaults(rows)
        if recipe == "default" and kind == "real"
    ]
    heads = ["network", "dense", "zeros", "images", "top-1", "points lost"]
    return (
        f"{_markdown(heads, lines)}\n\n"
        f"Top-1 in percent on {_tests(rows)}. `a ± b (n)`: median over n choices of the "
        "calibration images, and the largest distance from it."
    )


@table_of("default.csv")
def default_all(rows: Sequence[Row]) -> str:
    """The default recipe: top-1, and the cost with everything in it."""
    lines = [
        [
            NAMES[network],
            f"{float(here[0]['dense_top1']):.1f}",
            f"{float(sparsity):.0%}",
            f"{images} {KINDS[kind]}",
            recipe,
            _top1(here),
            _points_lost(here),
            f"{statistics.median(float(row['kl']) for row in here):.3f}",
            f"{statistics.median(float(row['ratio']) for row in here):.0f}",
        ]
        for (network, sparsity, kind, images, recipe), here in _defaults(rows)
    ]
    heads = ["network", "dense", "zeros", "images", "recipe", "top-1", "points lost", "KL, nats"]
    heads.append("cost")
    return (
        f"{_markdown(heads, lines)}\n\n"
        f"Top-1 in percent on {_tests(rows)}; points lost with "
        "their paired standard error; KL divergence from the dense network's outputs; cost of the "
        "whole call in dense forward passes over the same images, measured on a busy machine. "
        "`a ± b (n)` is the median over n choices of the images and the largest distance from it; "
        f"without ± it is one choice. {_machine(rows)}"
    )


def _defaults(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, ...], list[Row]]]:
    """The rows of each network, sparsity, kind and number of images, and recipe."""
    columns = ("network", "sparsity", "data", "images", "recipe")
    for key in sorted(
        {tuple(row[of] for of in columns) for row in rows},
        key=lambda of: (*_order(of[:2]), list(KINDS).index(of[2]), int(of[3]), of[4]),
    ):
        yield key, _where(rows, **dict(zip(columns, key, strict=True)))


def _points_lost(rows: Sequence[Row]) -> str:
    lost = statistics.median(float(row["drop"]) for row in rows)
    return f"{lost:.1f} ± {_largest_error(rows):.1f}"


def cost(folder: Path) -> str:
    """Time of pruning next to a forward pass; peak memory."""
    parts = []
    if rows := read_rows(folder / "cost.csv"):
        heads = ["network", "images", "one dense forward pass", "prune", "ratio", "runs"]
        parts.append(_markdown(heads, [_cost_line(rows)]))
        parts.append(f"Medians over the runs; both ran in turns in one process. {_machine(rows)}")
    if rows := read_rows(folder / "memory.csv"):
        heads = ["network", "images", "zeros", "before", "peak", "prune"]
        parts.append(_markdown(heads, [_memory_line(row) for row in rows]))
        parts.append(
            "Peak resident memory of the whole process (1 GB = 1e9 bytes), before and during the "
            f"call, with random images. {_machine(rows)}"
        )
    return "\n\n".join(parts) or MISSING


STEPS = {  # columns of the paper's tables, in their order
    "magnitude": "magnitude",
    "channel-alignment": "+ channel alignment",
    "weight-correction": "+ weight correction",
    "bias-correction": "+ bias correction",
    "adam-calibration": "+ Adam (the paper)",
    "least-squares": "least squares",
    "admm": "ADMM",
    "admm-for-adam": "the paper, ADMM instead of Adam",
    "default": "default",
}
RUN_HEADS = {
    "paper": "the paper's recipe",
    **{run: STEPS[run] for run in ("least-squares", "admm", "admm-for-adam", "default")},
}
KINDS = {
    "real": "photographs",
    "fractal": "fractals",
    "pink": "1/f noise",
    "gaussian": "Gaussian noise",
}


@table_of("paper.csv")
def paper(rows: Sequence[Row]) -> str:
    """Top-1 after each step of the paper's recipe and of two other methods."""
    parts = []
    for network, here in _by("network", NAMES, rows):
        steps = [step for step, _ in _by("step", STEPS, here)]
        lines = []
        for kind, of_kind in _by("data", KINDS, here):
            for sparsity in sorted({row["sparsity"] for row in of_kind}, key=float):
                these = _where(of_kind, sparsity=sparsity)
                cells = [_top1(_where(these, step=step)) for step in steps]
                lines.append([KINDS[kind], f"{float(sparsity):.0%}", *cells])
        heads = ["images", "zeros", *(STEPS[step] for step in steps)]
        dense = f"{NAMES[network]}, dense {float(here[0]['dense_top1']):.1f}:"
        parts += [dense, _markdown(heads, lines)]
    return "\n\n".join([*parts, _paper_notes(rows)])


@table_of("paper.csv")
def paper_cost(rows: Sequence[Row]) -> str:
    """Forward passes that the paper's recipe and the others take."""
    lines = []
    for network, here in _by("network", NAMES, rows):
        cells = []
        for run in RUN_HEADS:
            held = {  # the steps of a run have the cost of the whole
                (row["data"], row["sparsity"], row["draw"]): float(row["ratio"])
                for row in _where(here, run=run)
            }
            cells.append(f"{statistics.median(held.values()):.0f} ({len(held)})" if held else "-")
        lines.append([NAMES[network], *cells])
    heads = ["network", *RUN_HEADS.values()]
    note = (
        "Time of the whole `prune` call in dense forward passes over the same 300 images, which "
        "were measured just before in the same process. Median over the runs (number of runs)."
    )
    return f"{_markdown(heads, lines)}\n\n{note} {_machine(rows)}"


def _paper_notes(rows: Sequence[Row]) -> str:
    networks = _by("network", NAMES, rows)
    errors = ", ".join(f"{NAMES[name]} {_largest_error(here):.1f}" for name, here in networks)
    return (
        "Top-1 in percent. The columns up to the paper are cumulative from left to right. 300 "
        "images of each kind; sparsity is that of the pruned layers. `a ± b (n)`: median over n "
        "choices or seeds of the images, and the largest distance from it; without ± it is one "
        f"choice. Standard error of the points lost, at most: {errors}. Evaluated on "
        f"{_tests(rows)}. {_machine(rows)}"
    )


@table_of("packing.csv")
def packing(rows: Sequence[Row]) -> str:
    """Bytes of pruned weights, packed and not."""
    sizes = {"bytes": "saved", "zip": "zip -9", "zstd19": "zstd -19", "packed": "packed"}
    heads = ["weights", "type", "zeros", "dense float32", *sizes.values(), "of dense float32"]
    lines = [
        [
            {**NAMES, "random": "Gaussian"}[row["weights"]],
            row["type"],
            f"{float(row['sparsity']):.0%}",
            *(f"{int(row[of]) / 1000:,.0f}" for of in ("float32_bytes", *sizes)),
            f"{int(row['packed']) / int(row['float32_bytes']):.1%}",
        ]
        for row in rows
    ]
    (timed,) = _where(rows, weights="efficientnet_lite0", type="float32", sparsity="0.65")
    steps = {"zstd19": "zstd -19", "pack": "pack", "unpack": "unpack"}
    seconds = (f"{name} {float(timed[f'{of}_seconds']):.1f} s" for of, name in steps.items())
    return (
        f"{_markdown(heads, lines)}\n\nKilobytes (1000 bytes) of whole `.safetensors` files, and "
        'the packed file as a share of the dense float32 file. "zeros" is the share among '
        "the weights of the pruned layers, which are 96 % of all. INT8 files keep "
        "normalisation and scales in float32. Processor time for EfficientNet-Lite0 in float32 at "
        f"65 %: {', '.join(seconds)}. zstd {timed['zstd']}. {_machine(rows)}"
    )


FILES = {  # of int8.csv, in their order
    "model.onnx": "ONNX, float32",
    "model-int8.onnx": "ONNX, INT8",
    "openvino/model.xml": "OpenVINO, float32",
    "openvino/model-int8.xml": "OpenVINO, INT8",
}


@table_of("int8.csv")
def int8(rows: Sequence[Row]) -> str:
    """Top-1 of each file of a pruned network."""
    lines = []
    keys = {(row["network"], row["sparsity"], row["images"], row["draw"]) for row in rows}
    for network, sparsity, images, draw in sorted(keys, key=lambda of: (*_order(of[:2]), *of[2:])):
        case = _where(rows, network=network, sparsity=sparsity, images=images, draw=draw)
        for file, here in _by("file", FILES, case):
            (row,) = here
            lines.append(
                [
                    NAMES[network],
                    f"{float(sparsity):.0%}",
                    FILES[file],
                    f"{float(row['top1']):.2f}",
                    f"{float(row['drop']):.2f} ± {float(row['drop_error']):.2f}",
                    f"{float(row['int8_drop']):.2f} ± {float(row['int8_drop_error']):.2f}",
                    f"{float(row['agreement']):.2f}",
                    f"{int(row['zeros']):,}",
                    f"{int(row['bytes']) / 1000:,.0f}",
                ]
            )
    heads = ["network", "zeros", "file", "top-1", "lost to dense", "lost to float32"]
    heads += ["agreement", "zeros found", "kB"]
    return (
        f"{_markdown(heads, lines)}\n\nTop-1 in percent on {_tests(rows)}; points lost "
        "against the dense network and against the pruned network as float32 ONNX, with their "
        "paired standard errors; agreement with the dense network in percent of the images; zeros "
        f"of the pruned network found in the file (always all of them). {_machine(rows)}"
    )


@table_of("allocation.csv")
def allocation(rows: Sequence[Row]) -> str:
    """Accuracy and cost of each allocation."""
    lines = [
        [
            NAMES[row["network"]],
            f"{float(row['sparsity']):.0%}",
            row["allocation"],
            f"{float(row['top1']):.1f}",
            f"{float(row['drop']):.1f} ± {float(row['drop_error']):.1f}",
            f"{float(row['kl']):.3f}",
            f"{float(row['ratio']):.1f}",
        ]
        for row in rows
    ]
    heads = ["network", "zeros", "allocation", "top-1", "points lost", "KL, nats", "cost"]
    return (
        f"{_markdown(heads, lines)}\n\n"
        f"{rows[0]['images']} calibration images; evaluated on {_tests(rows)}. "
        "`exhaustive` is `sensitivity` at eight sparsities of every layer. "
        "Cost of the allocation alone, in dense forward passes over the "
        "same images. "
        f"{_machine(rows)}"
    )


@table_of("speed.csv")
def speed(rows: Sequence[Row]) -> str:
    """Latency of dense and pruned files."""
    names = {**NAMES, "int8_stack": "INT8 linear layers"}
    heads = ["network", "runtime", "zeros", "median, ms", "interval", "ratio to dense"]
    heads += ["against dense", "layers run sparse", "peak MB"]
    lines = [
        [
            names[row["network"]],
            row["runtime"],
            f"{float(row['sparsity']):.0%}",
            f"{float(row['median_ms']):.1f}",
            f"{float(row['low_ms']):.1f} to {float(row['high_ms']):.1f}",
            _ratio(row) if row["against_dense"] else "-",
            row["against_dense"] or "-",
            f"{row['sparse_layers']} of {row['layers']}" if row["layers"] else "-",
            f"{float(row['peak_mb']):.0f}",
        ]
        for row in rows
    ]
    notes = "; ".join(sorted({row["note"] for row in rows if row["note"]}))
    (first, *_) = rows
    return (
        f"{_markdown(heads, lines)}\n\n{notes}. {first['rounds']} rounds in which the files took "
        f"turns, in five processes; 95 % intervals; {first['threads']} threads, batch "
        f"{first['batch']}. ONNX Runtime {first['onnxruntime']}, OpenVINO {first['openvino']}. "
        f"{_machine(rows)}"
    )


def _ratio(row: Row) -> str:
    low, middle, high = (float(row[of]) for of in ("ratio_low", "ratio", "ratio_high"))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


@table_of("channels.csv")
def channels(rows: Sequence[Row]) -> str:
    """Whole channels removed: top-1 and cost at shares of the multiply-accumulates."""
    columns = ("network", "max_macs", "data", "images", "recipe", "multiple")
    keys = {tuple(row[of] for of in columns) for row in rows}
    lines = []
    for key in sorted(keys, key=lambda of: (_narrower(of), list(KINDS).index(of[2]), *of[3:])):
        network, share, kind, images, recipe, multiple = key
        here = _where(rows, **dict(zip(columns, key, strict=True)))
        lines.append(
            [
                NAMES[network],
                f"{float(here[0]['dense_top1']):.1f}",
                f"{float(share):.0%}",
                f"{images} {'digits' if 'digits' in network else KINDS[kind]}",
                recipe,
                "any" if multiple == "1" else f"multiples of {multiple}",
                _top1(here),
                _points_lost(here),
                f"{statistics.median(float(row['kl']) for row in here):.3f}",
                f"{statistics.median(float(row['ratio']) for row in here):.0f}",
            ]
        )
    heads = ["network", "dense", "MACs", "images", "recipe", "widths", "top-1", "points lost"]
    return (
        f"{_markdown([*heads, 'KL, nats', 'cost'], lines)}\n\n"
        f"Top-1 in percent on {_tests(rows)}; points lost with their paired standard error; KL "
        "divergence from the dense network's outputs; cost of the whole call in dense forward "
        'passes over the same images. "one-walk" is the default recipe without block '
        "reconstruction. `a ± b (n)`: median over n choices of the "
        f"images, and the largest distance from it. {_machine(rows)}"
    )


def channel_rivals(folder: Path) -> str:
    """Other tools at the multiply-accumulates of Secateur's rows."""
    rivals = [row for row in read_rows(folder / "channel_rivals.csv") if row["top1"]]
    own = _where(read_rows(folder / "channels.csv"), data="real", multiple="1")
    if not rivals:
        return MISSING
    rivals = [row for _, here in _by("network", NAMES, rivals) for row in _best_half(here)]
    parts = []
    for network, here in _by("network", NAMES, rivals):
        shares = sorted({row["max_macs"] for row in here}, key=float, reverse=True)
        theirs = _where(own, network=network, half=here[0]["half"])
        lines = [
            [f"Secateur, {recipe}", *_at(_where(theirs, recipe=recipe), shares)]
            for recipe in dict.fromkeys(row["recipe"] for row in theirs)
        ]
        lines += [
            [_tool(*pair), *_at(_where(here, rival=pair[0], recovery=pair[1]), shares)]
            for pair in dict.fromkeys((row["rival"], row["recovery"]) for row in here)
        ]
        dense = f"{NAMES[network]}, dense {float(here[0]['dense_top1']):.1f}:"
        parts += [dense, _markdown(["MACs", *(f"{float(of):.0%}" for of in shares)], lines)]
    errors = ", ".join(
        f"{NAMES[name]} {_largest_error(here):.1f}" for name, here in _by("network", NAMES, rivals)
    )
    note = (
        f"Top-1 in percent on {_tests(rivals)}; {rivals[0]['images']} calibration images. Standard "
        f"error of the points lost, at most: {errors}. A dash: not measured, or the tool leaves "
        "more. "
    )
    return "\n\n".join([*parts, note + _machine(rivals)])


RECOVERY_HEADS = {
    "none": "",
    "batchnorm": ", BatchNorm anew",
    "onnxsim": ", its refit",
    "onnxsim-batchnorm": ", its refit and BatchNorms",
}


def _tool(rival: str, recovery: str) -> str:
    return rival + RECOVERY_HEADS[recovery]


def _at(rows: Sequence[Row], shares: Sequence[str]) -> list[str]:
    return [_top1(_where(rows, max_macs=share)) for share in shares]


def _narrower(of: Sequence[str]) -> tuple[int, float]:
    network, share = _order((of[0], of[1]))
    return network, -share


@table_of("architectures.csv")
def architectures(rows: Sequence[Row]) -> str:
    """Which networks can lose channels, as modules and as ONNX files."""
    lines = []
    for name in dict.fromkeys(row["network"] for row in rows):
        here = {row["form"]: row for row in _where(rows, network=name)}
        module, file = here["module"], here.get("onnx")
        left = module["share_left"]
        lines.append(
            [
                name,
                f"{float(module['share_free']):.0%}",
                f"{float(left):.0%}" if left else "-",
                _comparison(module),
                _comparison(file) if file else "",
                _short_reasons(module["reasons"]),
            ]
        )
    heads = ["network", "MACs that can leave", "MACs left", "module", "ONNX", "what stays"]
    largest = max(float(row["largest_difference"]) for row in rows if row["largest_difference"])
    programs = sum(row["kind"] == "traced program" for row in rows)
    counts = f"{len(lines)} networks, {sum(row['form'] == 'onnx' for row in rows)} also as files"
    return (
        f"{_markdown(heads, lines)}\n\n"
        f"{counts}. Of each coupling the same share of the channels was removed, drawn by lot, to "
        "reach 70 % of the multiply-accumulates (MACs), or as many as can leave. Module and ONNX: "
        "largest difference between the smaller network and the one that ignores these channels, "
        f"over the largest output; at most {largest:.1e}. {programs} modules became traced "
        f"programs (p). Outputs stay everywhere. {_machine(rows)}"
    )


@table_of("transformer_calls.csv")
def transformer_calls(rows: Sequence[Row]) -> str:
    """Transformers pruned, saved and loaded again."""
    lines = [
        [
            row["network"],
            f"{float(row['prunable']):.1%}",
            _reached(row["zeros"], row["zeros_result"]),
            _reached(row["macs_left"], row["channels_result"]),
            row["kind"],
            _short_reasons(row["reasons"]),
        ]
        for row in rows
    ]
    heads = ["network", "prunable", "zeros", "MACs left", "as", "why the rest is not"]
    ways = ("zeros_result", "channels_result")
    same = sum(all(row[way] == "same" for way in ways) for row in rows)
    return (
        f"{_markdown(heads, lines)}\n\n"
        f"{len(rows)} networks of two layers, random weights, 24 samples. Prunable: share of the "
        "weights of linear and convolution layers. Zeros: share of the pruned layers' weights, "
        "counted in the module. MACs left: of 70 % asked for, by whole channels, compared with the "
        "network that ignores these channels. Saved and loaded again, both networks of "
        f"{same} give the same to the last bit. {_machine(rows)}"
    )


def _reached(share: str, result: str) -> str:
    """What was reached, or what kept it from being so."""
    if not share:
        return result
    return f"{float(share):.0%}" + ("" if result == "same" else f", {result}")


def _comparison(row: Row) -> str:
    """The difference, or what kept it from being measured."""
    if row["result"] != "same":
        return row["result"]
    return row["largest_difference"] + (" p" if row["kind"] == "traced program" else "")


def _short_reasons(reasons: str) -> str:
    """The three that hold for most groups of channels, without their numbers."""
    kinds = dict.fromkeys(of.partition("x ")[2] for of in reasons.split("; ") if of)
    return "; ".join([*kinds][:3])


@table_of("channel_latency.csv")
def channel_latency(rows: Sequence[Row]) -> str:
    """Latency of networks with fewer channels, and of rivals, at equal multiply-accumulates."""
    lines = [
        [
            NAMES[row["network"]],
            f"{float(row['max_macs']):.0%}",
            row["tool"],
            row["runtime"],
            f"{float(row['median_ms']):.2f}",
            _ratio(row),
        ]
        for row in rows
    ]
    heads = ["network", "MACs", "tool", "runtime", "median, ms", "ratio to dense"]
    (first, *_) = rows
    return (
        f"{_markdown(heads, lines)}\n\n{first['rounds']} rounds in which the files took turns, in "
        f"five processes; 95 % intervals; {first['threads']} thread, batch {first['batch']}. "
        f"ONNX Runtime {first['onnxruntime']}, OpenVINO {first['openvino']}. {_machine(rows)}"
    )


RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def _best_half(rows: Sequence[Row]) -> list[Row]:
    """Those judged on images on which nothing was chosen, where there are any."""
    return _where(rows, half="quote") or list(rows)


TARGETS = {"max_latency": "of the time", "max_macs": "of the MACs"}


@table_of("deployed.csv")
def deployed(rows: Sequence[Row]) -> str:
    """Accuracy and time of the files that are deployed: channels removed, and INT8."""
    lines = [
        [
            NAMES[row["network"]],
            f"{float(row['value']):.0%} {TARGETS[row['target']]}",
            row["file"],
            RUNTIMES[row["runtime"]],
            f"{float(row['macs_fraction']):.0%}",
            f"{float(row['top1']):.1f}",
            f"{float(row['drop']):.1f} ± {float(row['drop_error']):.1f}",
            f"{float(row['milliseconds']):.2f}",
            _ratio(row),
        ]
        for row in sorted(rows, key=lambda of: _order((of["network"], of["value"])))
    ]
    heads = ["network", "asked for", "file", "runtime", "MACs", "top-1", "points lost"]
    versions = sorted({f"{RUNTIMES[row['runtime']]} {row['version']}" for row in rows})
    return (
        f"{_markdown([*heads, 'median, ms', 'ratio to dense'], lines)}\n\nOne image, one thread, "
        "the four files of a network in turns in five processes after pruning; 95 % intervals. "
        f"Top-1 in percent on {_tests(rows)}; points lost against the dense network in float32, "
        "with their paired standard error. "
        f"{', '.join(versions)}. {_machine(rows)}"
    )


@table_of("third_party.csv")
def third_party(rows: Sequence[Row]) -> str:
    """Third-party ONNX files, pruned."""
    heads = ["package", "file", "inputs", "samples", "layers pruned", "zeros", "output error"]
    lines = [
        [
            f"{row['package']} {row['version']}",
            f"`{row['file']}`",
            row["shape"] or "-",
            row["images"] or "-",
            f"{row['pruned_layers']} of {row['layers']}" if row["layers"] else "-",
            f"{int(row['zeros']):,} of {int(row['weights']):,}" if row["zeros"] else "-",
            f"{float(row['output_error']):.2g}" if row["output_error"] else "-",
            row["result"],
        ]
        for row in rows
    ]
    return (
        f"{_markdown([*heads, 'result'], lines)}\n\nPruned to 50 % zeros on fractals, or on what "
        "the file takes in their place: sounds of many harmonics, the bytes of files, random "
        "tokens; zeros counted in the written file. Output error: squared error of the first "
        "output / its variance, on 16 other samples. These are unlike the networks' own: the "
        f"error shows that the file runs, not how accurate it is. {_machine(rows)}"
    )


ELSEWHERE = {
    "fashion": "residual CNN, Fashion-MNIST",
    "text-direction": "MobileNetV3 (ONNX), text upside down or not",
    "pitch": "CREPE tiny, pitch of a tone",
    "digits-transformer": "vision transformer, digits",
}


@table_of("elsewhere.csv")
def elsewhere(rows: Sequence[Row]) -> str:
    """Points lost and KL by recipe, on networks that no default was chosen on."""
    first = [name for name in ("default", "tuned", "paper") if _where(rows, recipe=name)]
    recipes = list(dict.fromkeys([*first, *(row["recipe"] for row in rows)]))
    lines = []
    for network, here in _by("network", ELSEWHERE, rows):
        name = f"{ELSEWHERE[network]}: {float(here[0]['dense_top1']):.1f}"
        for sparsity in sorted({row["sparsity"] for row in here}, key=float):
            these = {row["recipe"]: row for row in _where(here, sparsity=sparsity)}
            cells = [_lost(these.get(recipe)) for recipe in recipes]
            lines.append([name, f"{float(sparsity):.0%}", *cells])
            name = ""
    errors = ", ".join(
        f"{ELSEWHERE[network]} {max(float(row['drop_error'] or 0) for row in here):.1f}"
        for network, here in _by("network", ELSEWHERE, rows)
    )
    refused = "; ".join(sorted({row["result"] for row in rows if not row["top1"]}))
    return (
        f"{_markdown(['network: dense top-1', 'zeros', *recipes], lines)}\n\n"
        "Top-1 in percent; in brackets the KL divergence from the dense network's outputs in nats. "
        f"Standard error of the points lost, at most: {errors}. "
        f"{f'A dash: {refused}. ' if refused else ''}{_machine(rows)}"
    )


def _lost(row: Row | None) -> str:
    if row is None or not row["top1"]:
        return "-"
    return f"{float(row['top1']):.1f} ({float(row['kl']):.2g})"


SENTENCE_METHODS = {  # in the order of the table
    "default": "Secateur, default",
    "least-squares": "default with least squares in place of ADMM",
    "paper": "the paper's recipe",
    "sparsegpt": "SparseGPT",
    "wanda": "Wanda",
    "magnitude": "magnitude, one threshold",
}


@table_of("sentences.csv")
def sentences(rows: Sequence[Row]) -> str:
    """Spearman's correlation of a sentence encoder after pruning, by method."""
    zeros = _where(rows, target="sparsity", file="module")
    shares = sorted({row["value"] for row in zeros}, key=float)
    lines = []
    for method, of in _by("method", SENTENCE_METHODS, zeros):
        found = [_where(of, value=share) for share in shares]
        costs = [
            f"{statistics.median(float(row['ratio']) for row in here):.0f}" if here else "-"
            for here in found
        ]
        lines.append([SENTENCE_METHODS[method], *map(_spearman, found), ", ".join(costs)])
    heads = ["method", *(f"{float(share):.0%} zeros" for share in shares), "cost"]
    return f"{_markdown(heads, lines)}\n\n{_sentence_notes(rows)} {_machine(rows)}"


@table_of("sentences.csv")
def sentence_channels(rows: Sequence[Row]) -> str:
    """The same where whole channels leave: heads' dimensions and neurons."""
    narrower = sorted(_where(rows, target="max_macs"), key=lambda row: -float(row["value"]))
    if not narrower:
        return MISSING
    lines = [
        [
            f"{float(row['macs_fraction']):.0%}",
            _spearman([row]),
            f"{float(row['latency']):.2f}"
            + f" ({float(row['latency_low']):.2f} to {float(row['latency_high']):.2f})",
            f"{float(row['ratio']):.0f}",
        ]
        for row in narrower
    ]
    return (
        f"{_markdown(['MACs', 'Spearman', 'time', 'cost'], lines)}\n\n"
        "Time of one sentence of 32 tokens on ONNX Runtime, one thread, against the dense "
        f"network's, with its 95 % interval. {_machine(narrower)}"
    )


_FILES = {"onnx": "an ONNX file", "ir": "an OpenVINO file"}


def _spearman(rows: Sequence[Row]) -> str:
    """Median over the draws and the largest distance from it; what is lost in brackets."""
    if not rows:
        return "-"
    found = [float(row["spearman"]) for row in rows]
    middle = statistics.median(found)
    spread = max(abs(value - middle) for value in found)
    several = f" ± {spread:.4f} ({len(found)})" if len(found) > 1 else ""
    return f"{middle:.4f}{several}, {middle - float(rows[0]['dense_spearman']):+.4f}"


def _sentence_notes(rows: Sequence[Row]) -> str:
    dense = float(rows[0]["dense_spearman"])
    return (
        "Spearman's correlation of the embeddings' cosines with the scores of the 1,500 pairs of "
        f"STS-B dev (dense: {dense:.4f}), on which settings were chosen too, and what is lost; "
        f"calibrated on {rows[0]['sentences']} training sentences of at most {rows[0]['tokens']} "
        "tokens, without scores; cost of the whole call in dense forward passes over these, in "
        "processor time on one thread, at each share of zeros. `a ± b (n)`: median over n choices "
        "of the sentences, and the largest distance from it." + _equal_masks(rows)
    )


def _equal_masks(rows: Sequence[Row]) -> str:
    """How alike the zeros of a file and of the module are."""
    shares = [
        f"{float(row['masks_equal']):.2%} as {_FILES[row['file']]} at {float(row['value']):.0%}"
        for row in rows
        if row["masks_equal"]
    ]
    if not shares:
        return ""
    return f" Weights that are zero in both or in neither of module and file: {', '.join(shares)}."


@table_of("scaling.csv")
def scaling_runs(rows: Sequence[Row]) -> str:
    """What was measured beside what the model says."""
    rates, lines = fitted(rows), list[list[str]]()
    for row in rows:
        was = float(row["seconds"])
        said = sum(float(row[of]) * rate for of, rate in zip(WORK, rates, strict=True))
        told = [f"{was:.0f}", f"{said:.0f}", f"{said / was - 1:+.0%}", row["peak_gb"]]
        lines.append([row["network"], row["samples"], *told])
    heads = ["network", "samples", "measured, s", "by the model, s", "off", "peak, GB"]
    return f"{_markdown(heads, lines)}\n\n{_machine(rows)}"


@table_of("scaling.csv")
def scaling_rates(rows: Sequence[Row]) -> str:
    """Seconds by kind of work."""
    lines = [[of, f"{rate:.2g}"] for of, rate in zip(WORK, fitted(rows), strict=True)]
    return _markdown(["kind of work", "seconds per 1e12 operations, or 1000 fits"], lines)


@table_of("scaling.csv")
def scaling_plans(rows: Sequence[Row]) -> str:
    """What the model says of runs that nobody has made."""
    rates, lines = fitted(rows), list[list[str]]()
    for name, plan in PLANS.items():
        hours = plan.seconds(rates) / 3600
        sizes = [f"{of / 1e9:.2g}" for of in (plan.weights, plan.values, plan.statistics)]
        lines.append([name, *(f"{of:.2g}" for of in hours), f"{hours.sum():.3g}", *sizes])
    sizes = ["weights, GB", "values, GB", "widest layer, GB"]
    return _markdown(["run", *WORK, "all, hours", *sizes], lines)


@table_of("processes.csv")
def processes(rows: Sequence[Row]) -> str:
    """Several processes against one."""
    heads = ("processes", "threads of each", "seconds", "peak of each, GB", "bytes")
    lines = [
        [
            row["processes"],
            row["threads"],
            row["seconds"],
            f"{row['before_gb']} before, {row['peak_gb']}",
            row["sha256"][:8],
        ]
        for row in rows
    ]
    first = rows[0]
    what = f"{NAMES[first['network']]}, {first['images']} images, {float(first['sparsity']):.0%}"
    return f"{_markdown(heads, lines)}\n\n{what}. {_machine(rows)}"


@table_of("scale.csv")
def scale(rows: Sequence[Row]) -> str:
    """Large networks with and without a cap."""
    heads = ("network", "images", "zeros", "cap", "limit", "seconds", "peak, GB", "bytes")
    lines = [
        [
            NAMES.get(row["network"], row["network"]),
            row["images"],
            f"{float(row['sparsity']):.0%}",
            row["memory"],
            row["limit"],
            f"{float(row['seconds']):.0f}"
            + (f", in {row['processes']} processes" if int(row["processes"]) > 1 else ""),
            row["peak_gb"],
            row["sha256"][:8],
        ]
        for row in rows
    ]
    return f"{_markdown(heads, lines)}\n\n{_machine(rows)}"


@table_of("resume.csv")
def resume(rows: Sequence[Row]) -> str:
    """Runs that were killed, and went on."""
    same = sum(row["same_bytes"] == "True" for row in rows)
    lost = sorted(float(row["lost_seconds"]) for row in rows)
    first = rows[0]
    return (
        f"{len(rows)} runs of {first['images']} images, killed after {_span(rows, 'at_seconds')} s "
        f"of {float(first['undisturbed_seconds']):.0f}: {same} gave the same bytes as undisturbed. "
        f"Lost were {lost[0]:.1f} to {lost[-1]:.1f} s (median {statistics.median(lost):.1f}) "
        "beside a second start; the longest step takes "
        f"{float(first['longest_step_seconds']):.1f} s. {_machine(rows)}"
    )


def _span(rows: Sequence[Row], column: str) -> str:
    values = [float(row[column]) for row in rows]
    return f"{min(values):.0f} to {max(values):.0f}"


@table_of("gpu.csv")
def gpu(rows: Sequence[Row]) -> str:
    """Pruning on a GPU against the CPU of the same machine."""
    heads = (
        "network",
        "target",
        "samples",
        "on",
        "seconds",
        "GPU memory",
        "relative error",
        "judged",
    )
    lines = [
        [
            NAMES[row["network"]],
            row["target"] if ":" in row["target"] else f"{float(row['target']):.0%}",
            row["samples"],
            row["gpu"] or f"CPU, {row['threads']} threads",
            row["seconds"],
            f"{row['peak_gpu_gb']} GB" if row["gpu"] else "-",
            row["relative_error"],
            f"{row['pruned']} ({row['dense']})" if row["dense"] else "-",
        ]
        for row in rows
    ]
    equal = "; ".join(
        f"{NAMES[row['network']]}: {float(row['masks_equal']):.1%} of the masks equal"
        for row in rows
        if row["masks_equal"]
    )
    return f"{_markdown(heads, lines)}\n\n{equal}. {_machine(rows)}"


@table_of("semi_structured.csv")
def semi_structured(rows: Sequence[Row]) -> str:
    """2:4 on a GPU against the dense network in float16."""
    heads = ("width", "batch", "kernels launched", "float32, ms", "dense float16, ms", "2:4, ms")
    lines = [
        [
            row["width"],
            row["batch"],
            row["launched"],
            f"{float(row['float32_ms']):.2f}",
            f"{float(row['float16_ms']):.2f}",
            f"{float(row['accelerated_ms']):.2f}",
            row["against_float16"],
            f"{row['sparse_layers']} of {row['layers']}" + ", all" * (row["kernels"] == "forced"),
        ]
        for row in rows
    ]
    heads = (*heads, "times as fast as float16", "layers in 2:4")
    return f"{_markdown(heads, lines)}\n\n{rows[0]['gpu']}. {_machine(rows)}"


PAGES: dict[str, dict[str, Table]] = {
    "README.md": {"default": default},
    "docs/results.md": {
        "default-all": default_all,
        "sentences": sentences,
        "sentence-channels": sentence_channels,
    },
    "docs/channels.md": {
        "channels": channels,
        "channel-rivals": channel_rivals,
        "channel-latency": channel_latency,
        "architectures": architectures,
        "deployed": deployed,
    },
    "docs/how-it-works.md": {
        "allocation": allocation,
        "elsewhere": elsewhere,
        "accuracy": accuracy,
        "cost": cost,
    },
    "docs/scale.md": {
        "scaling-rates": scaling_rates,
        "scaling-runs": scaling_runs,
        "scaling-plans": scaling_plans,
        "scale": scale,
        "processes": processes,
        "resume": resume,
        "gpu": gpu,
    },
    "docs/networks.md": {"transformer-calls": transformer_calls},
    "docs/paper.md": {"paper": paper, "paper-cost": paper_cost},
    "docs/packed-format.md": {"packing": packing},
    "docs/deployment.md": {
        "int8": int8,
        "semi-structured": semi_structured,
        "speed": speed,
        "third-party": third_party,
    },
}


def renewed(text: str, folder: Path, tables: dict[str, Table]) -> str:
    """A page's text with every table rewritten."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            sys.exit(f"the page lacks {begin} or {end}: put both where the table goes")
        text = f"{before}{begin}\n{table(folder)}\n{end}{after}"
    return text


def _check_comparable(rows: Sequence[Row]) -> None:
    """Ends the program rather than taking a median over different settings."""
    for name in {row["network"] for row in rows}:
        columns = ("allocation", "images", "half", "test_images")
        seen = {tuple(row[of] for of in columns) for row in _where(rows, network=name)}
        if len(seen) > 1:
            sys.exit(f"accuracy.csv has {name} with {sorted(seen)}, expected one {columns}")


def _where(rows: Sequence[Row], **values: str) -> list[Row]:
    """The rows that have these values in the columns named."""
    return [row for row in rows if all(row[column] == of for column, of in values.items())]


def _by(column: str, order: Iterable[str], rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows with each value of a column, in the order given; values without rows left out."""
    found = ((value, _where(rows, **{column: value})) for value in order)
    return [(value, here) for value, here in found if here]


def _order(of: tuple[str, str]) -> tuple[int, float]:
    names = list(NAMES)
    return (names.index(of[0]) if of[0] in names else len(names)), float(of[1])


def _top1(rows: Sequence[Row]) -> str:
    """Median over the draws, how far they are from it at most, and how many they are."""
    if not rows:
        return "-"
    values = [float(row["top1"]) for row in rows]
    middle = statistics.median(values)
    if len(values) == 1:
        return f"{middle:.1f}"
    return f"{middle:.1f} ± {max(abs(value - middle) for value in values):.1f} ({len(values)})"


def _accuracy_notes(rows: Sequence[Row]) -> str:
    sets = {(row["network"], row["images"]) for row in rows}
    images = "; ".join(
        f"{NAMES.get(name, name)}: {used} calibration images, points lost with a standard error of "
        f"up to {_largest_error(rows, network=name):.1f}"
        for name, used in sorted(sets, key=_order)
    )
    return (
        'Top-1 in percent. "zeros" is the share among the weights of the pruned layers. '
        "`a ± b (n)` is the median over n choices of the calibration images and the largest "
        f"distance from it; without ± it is one choice. {images}. Evaluated on {_tests(rows)}. "
        f"{_machine(rows)}"
    )


def _largest_error(rows: Sequence[Row], **values: str) -> float:
    return max(float(row["drop_error"]) for row in _where(rows, **values))


def _cost_line(rows: Sequence[Row]) -> list[str]:
    def median(column: str) -> float:
        return statistics.median(float(row[column]) for row in rows)

    return [
        NAMES[rows[0]["network"]],
        rows[0]["images"],
        f"{median('forward_seconds'):.1f} s",
        f"{median('prune_seconds'):.1f} s",
        f"{median('ratio'):.1f}",
        str(len(rows)),
    ]


def _memory_line(row: Row) -> list[str]:
    return [
        NAMES[row["network"]],
        row["images"],
        f"{float(row['sparsity']):.0%}",
        f"{float(row['before_gb']):.2f} GB",
        f"{float(row['peak_gb']):.2f} GB",
        f"{float(row['seconds']):.0f} s",
    ]


def _machine(rows: Sequence[Row]) -> str:
    """Versions and processors that the rows were measured with."""
    seen = {f"secateur {row['secateur']}, torch {row['torch']}, {row['cpu']}" for row in rows}
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    return f"Measured with {'; '.join(sorted(seen))}; commits: {commits}."


HALVES = {  # whether settings were chosen on the images of a row
    "choose": "on which settings were chosen",
    "quote": "on which nothing was chosen",
    "all": "on half of which settings were chosen",
}


def _tests(rows: Sequence[Row]) -> str:
    """The test images of some rows, by data set, and whether anything was chosen on them."""
    seen = sorted({(_data_set(row), int(row["test_images"]), row["half"]) for row in rows})
    parts = [f"{count:,} {name} images ({HALVES[half]})" for name, count, half in seen]
    if len({half for *_, half in seen}) > 1:
        return " and ".join(parts)
    held = " and ".join(f"{count:,} {name}" for name, count, _ in seen)
    return f"{held} test images, {HALVES[seen[0][-1]]}"


def _data_set(row: Row) -> str:
    return NAMES[row["network"]].split(", ")[1]


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))


def main() -> None:
    parser = argparse.ArgumentParser(description="Result tables of the pages from CSV files.")
    parser.add_argument("--check", action="store_true", help="only compare, change nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md and docs")
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER")
    options = parser.parse_args()
    for name, tables in PAGES.items():
        page = options.root / name
        text = page.read_text(encoding="utf-8")
        wanted = renewed(text, options.results, tables)
        if options.check and wanted != text:
            sys.exit(f"{name} differs from benchmarks/results: run python benchmarks/tables.py")
        if not options.check:
            page.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
