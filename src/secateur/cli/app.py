"""The command line: `secateur prune`, `sweep`, `inspect`, `evaluate`, `report` and others.

Exit status: 0 done; 2 a mistake in the call or its inputs, an interruption or a full disk, told
in one sentence on standard error with nothing written, or a file that could not be made, with the
others written; 1 a defect of secateur (a traceback).
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import io
import json
import os
import re
import select
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from secateur.cli.signals import ended_at_once
from secateur.errors import one_line
from secateur.support.files import begin, clean_up_when_killed, interruption
from secateur.version import __version__

if TYPE_CHECKING:
    from secateur.api import PruneResult
    from secateur.data.preprocess import Preprocess
    from secateur.data.streams import ImageStream
    from secateur.evaluation.inference import Evaluation
    from secateur.pruning.recipe import Recipe
    from secateur.report.model import Report
    from secateur.report.sweep import Sweep
    from secateur.support.progress import Teller

app = typer.Typer(
    name="secateur",
    help="Prune a trained neural network without retraining it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# what prune writes
WEIGHTS, ONNX, INT8 = "model.safetensors", "model.onnx", "model-int8.onnx"
PROGRAM = "model.pt2"  # where MODEL is one
IR, INT8_IR = "openvino/model.xml", "openvino/model-int8.xml"
REPORT, PAGE = "report.json", "report.html"
SWEEP, CURVE = "sweep.json", "sweep.html"  # what sweep writes

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An .onnx or .pt2 file, file.py:callable, package.mod:callable, timm:NAME or hf:PATH.",
    ),
]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE", help="Weights to load: .safetensors, .pt or .pth.")
]
Size = Annotated[int | None, typer.Option(help="Side of the square centre crop, in pixels.")]
Resize = Annotated[int | None, typer.Option(help="Short side before the crop; default: size.")]
Mean = Annotated[
    str | None, typer.Option(metavar="M,M,M", help="Mean per channel, pixels scaled to [0, 1].")
]
Std = Annotated[str | None, typer.Option(metavar="S,S,S", help="Standard deviation, likewise.")]
Channels = Annotated[int, typer.Option(help="3 (RGB) or 1 (grey).")]
Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="Calibration images: a folder, .npz, file.py:callable or fractal:300.",
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option("--eval", metavar="DATA", help="Images (with labels, if any) to judge by."),
]
RecipeName = Annotated[
    str, typer.Option(metavar="NAME|FILE", help="default, tuned, paper or a .toml file.")
]
MethodName = Annotated[
    str | None, typer.Option(help="Replaces the recipe's, as do the next two: such as admm.")
]
AllocationName = Annotated[
    str | None, typer.Option(help="sensitivity, normalized-magnitude or uniform.")
]
Inputs = Annotated[
    str | None, typer.Option(help="What a layer sees while it is fitted: pruned or dense.")
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Layers to prune, protected ones too; repeatable."),
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Layers to leave dense; repeatable.")
]
MaxImages = Annotated[int, typer.Option(help="Use at most this many images.")]
MaxColumns = Annotated[int, typer.Option(help="Fit layers with more inputs per output in blocks.")]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]
DeviceName = Annotated[str | None, typer.Option("--device", help="Such as cpu or cuda.")]
Quiet = Annotated[
    bool | None,
    typer.Option(
        "--quiet/--verbose",
        help="No progress, one line / the whole report; default: by whether it is on a terminal.",
    ),
]
Silent = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"secateur {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Prune a trained neural network without retraining it."""


@app.command()
def prune(
    model: Model,
    data: Data,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Fraction of zeros, in [0, 1). One of this and the next three."),
    ] = None,
    max_macs: Annotated[
        float | None, typer.Option(help="Multiply-accumulates left, as a fraction, in (0, 1].")
    ] = None,
    max_bytes: Annotated[
        float | None, typer.Option(help="Size of a packed file, as a fraction, in (0, 1].")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Points of top-1 (or, without labels, of agreement) to lose at most."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", help="Folder to write.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show how many zeros in each layer; write nothing.")
    ] = False,
    weights: Weights = None,
    eval_data: EvalData = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write model.onnx (as is done for an .onnx file).")
    ] = False,
    openvino: Annotated[
        bool, typer.Option("--openvino", help="Also write openvino/model.xml and .bin.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Also write model-int8.onnx and, with --openvino, its like."),
    ] = False,
    recipe: RecipeName = "default",
    method: MethodName = None,
    allocation: AllocationName = None,
    inputs: Inputs = None,
    include: Include = None,
    exclude: Exclude = None,
    size: Size = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    channels: Channels = 3,
    max_images: MaxImages = 1000,
    max_columns: MaxColumns = 8192,
    seed: Seed = 0,
    device: DeviceName = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files in OUT.")] = False,
    quiet: Quiet = None,
) -> None:
    """Prune MODEL and write the result, report.json and report.html to OUT.

    Exactly one of --sparsity, --max-macs, --max-bytes and --max-drop says how much. Of a PyTorch
    network it writes model.safetensors and, asked for, model.onnx; of a .pt2 file also model.pt2;
    of an .onnx file model.onnx, which is that file with other weights. INT8 files are made on the
    same images; every zero stays a zero in each file.
    """
    with _one_sentence():
        from secateur import api
        from secateur.data.sources import load_images
        from secateur.errors import ModelError, OptionError
        from secateur.export.files import rehearse
        from secateur.export.int8 import check_kind
        from secateur.frontends.first_runs import one_first_run
        from secateur.frontends.loading import is_onnx_file, is_program_file, load_model
        from secateur.pruning.recipe import choose_recipe
        from secateur.pruning.targets import choose_target
        from secateur.render.terminal import plan_view, print_view
        from secateur.support.files import check_folder, check_space, output_folder

        files = [ONNX] if is_onnx_file(model) else [WEIGHTS, *([ONNX] if onnx else [])]
        files += [PROGRAM] * is_program_file(model)
        files += [INT8] * int8 + [IR] * openvino + [INT8_IR] * (openvino and int8)
        if out is not None:
            check_folder(out, [*files, REPORT, PAGE], force=force)
        elif not dry_run:
            raise OptionError("got no folder to write, expected -o OUT: or ask for --dry-run")
        target = {
            "sparsity": sparsity,
            "max_macs": max_macs,
            "max_bytes": max_bytes,
            "max_drop": max_drop,
        }
        choose_target(**target)  # a mistake shows now, not after the images are read
        how = choose_recipe(recipe, method=method, allocation=allocation, inputs=inputs)
        _require(onnx=onnx and not is_onnx_file(model), openvino=openvino, int8=int8)
        preprocess = _preprocess(size, resize, mean, std, channels)
        planned, result, written, missing, no_page = None, None, {}, {}, ""
        with _working(quiet) as teller:
            teller.step("loading the network")
            network = load_model(model, weights)
            preprocess = _with_own(preprocess, network)
            quantize = "int8" if int8 else None
            check_kind(quantize, network)
            if out is not None and not dry_run:
                check_space(out, _least_bytes(network, files))
            teller.step("reading the images")
            images = load_images(data, preprocess=preprocess, max_images=max_images, seed=seed)
            common = _common(
                how, preprocess, include, exclude, max_images, max_columns, seed, device, teller
            )
            judged = _evaluation(eval_data, preprocess)
            asked = {"evaluation": judged, "quantize": quantize, **target, **common}
            if dry_run or out is None:
                planned = api.plan(network, images, **asked)
            else:
                with one_first_run(), output_folder(out, force=force) as folder:
                    if set(files) & {IR, INT8_IR} or {WEIGHTS, ONNX} <= set(files):
                        teller.step("trying the formats on the dense network")
                        rehearse(
                            network,
                            images.tensor,
                            onnx=ONNX in files,
                            openvino=openvino,
                            int8=int8,
                        )
                    result = api.prune(network, images, **asked)
                    missing = _write(result, folder, images.tensor, files, model, teller)
                    no_page = _write_page(result.report, folder / PAGE)
                    written = _sizes(folder)
        if planned is not None:
            print_view(plan_view(planned))
        if result is None or out is None:
            return
        _show(result, out, quiet)
        _list(out, written)
        _tell(PAGE, no_page)
        if missing:
            raise ModelError(_not_written(missing, out))


@app.command()
def sweep(
    model: Model,
    data: Data,
    sparsities: Annotated[
        str, typer.Option(metavar="S,S,...", help="Fractions of zeros, in [0, 1): 0.5,0.6,0.7.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Folder to write.")],
    weights: Weights = None,
    eval_data: EvalData = None,
    recipe: RecipeName = "default",
    method: MethodName = None,
    allocation: AllocationName = None,
    inputs: Inputs = None,
    include: Include = None,
    exclude: Exclude = None,
    size: Size = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    channels: Channels = 3,
    max_images: MaxImages = 1000,
    max_columns: MaxColumns = 8192,
    seed: Seed = 0,
    device: DeviceName = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files in OUT.")] = False,
    quiet: Quiet = None,
) -> None:
    """Prune MODEL to several sparsities and write what each costs to OUT.

    Writes sweep.json, sweep.html with the curve, and for each sparsity the report that prune
    would write; no networks. The layers' sensitivity is measured once.
    """
    with _one_sentence():
        from secateur.data.sources import load_images
        from secateur.frontends.loading import load_model
        from secateur.pruning.recipe import choose_recipe
        from secateur.render.terminal import print_view, sweep_view
        from secateur.report.sweep import check_sparsities
        from secateur.report.sweep import sweep as run
        from secateur.support.files import check_folder, output_folder

        check_folder(out, [SWEEP, CURVE], force=force)
        values = check_sparsities(_numbers("--sparsities", sparsities))
        how = choose_recipe(recipe, method=method, allocation=allocation, inputs=inputs)
        preprocess = _preprocess(size, resize, mean, std, channels)
        with _working(quiet) as teller:
            teller.step("loading the network")
            network = load_model(model, weights)
            preprocess = _with_own(preprocess, network)
            teller.step("reading the images")
            images = load_images(data, preprocess=preprocess, max_images=max_images, seed=seed)
            judged = _evaluation(eval_data, preprocess)
            common = _common(
                how, preprocess, include, exclude, max_images, max_columns, seed, device, teller
            )
            with output_folder(out, force=force) as folder:
                found = run(network, images, sparsities=values, evaluation=judged, **common)
                found.save(folder / SWEEP)
                for one in found.reports:
                    one.save(folder / f"report-{one.requested['target']['value']:g}.json")
                no_page = _write_page(found, folder / CURVE)
                written = _sizes(folder)
        print_view(sweep_view(found))
        _list(out, written)
        _tell(CURVE, no_page)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The .html file to write.")
    ] = None,
    bench: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Latencies to show: of bench --json.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
) -> None:
    """Show a report, or write it to FILE as a page."""
    with _one_sentence():
        from secateur.hardware.bench import Bench
        from secateur.render.terminal import print_view, report_view
        from secateur.report.model import Report

        found = Report.load(file)
        if out is None:
            print_view(report_view(found))
            return
        found.save_page(out, bench=None if bench is None else Bench.load(bench), force=force)
        typer.echo(_written(out, out.stat().st_size))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="A report.json.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another, of one network.")],
) -> None:
    """Show what differs between two reports: settings, accuracy, bytes, layers."""
    with _one_sentence():
        from secateur.render.terminal import comparison_view, print_view
        from secateur.report.comparison import compare_reports
        from secateur.report.model import Report

        names = str(first), str(second)
        found = compare_reports(Report.load(first), Report.load(second), names)
        print_view(comparison_view(found, names))


@app.command()
def bench(
    files: Annotated[
        list[Path], typer.Argument(metavar="DENSE PRUNED...", help=".onnx files (or .xml).")
    ],
    threads: Annotated[
        int | None, typer.Option(help="For each runtime; default: the cores there are.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images per run, where the file leaves it open.")] = 1,
    rounds: Annotated[int, typer.Option(help="Measurements of each file, at least 10.")] = 100,
    sparse_rate: Annotated[
        float, typer.Option(help="Zeros in a layer from which OpenVINO goes its sparse way.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of who comes first.")] = 0,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write it there.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    quiet: Silent = False,
) -> None:
    """Measure the latency of model files on ONNX Runtime and OpenVINO, on random inputs.

    The first file is the dense one, with which the others are compared. Do nothing else on the
    machine meanwhile.
    """
    with _one_sentence():
        from secateur.hardware.bench import bench as run
        from secateur.render.terminal import bench_view, print_view
        from secateur.support.files import check_file

        if json is not None:
            check_file(json, force=force)
        with _working(quiet) as teller:
            teller.step("measuring")
            found = run(
                *files,
                threads=threads,
                batch=batch,
                rounds=rounds,
                sparse_rate=sparse_rate,
                seed=seed,
                progress=lambda done, of: teller.step(f"measuring, {done} of {of} rounds done"),
            )
        if json is not None:
            found.save(json, force=force)
        print_view(bench_view(found))


@app.command()
def inspect(
    model: Model,
    weights: Weights = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="C,H,W", help="One input's shape; default: the .onnx file's, or 3,224,224."
        ),
    ] = None,
    size: Size = None,
    channels: Channels = 3,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also what each layer lacks for each runtime.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Silent = False,
) -> None:
    """List MODEL's layers: shapes, weights, MACs, which stay dense; and where zeros could pay."""
    with _one_sentence():
        from secateur import api
        from secateur.frontends.loading import load_model
        from secateur.render.terminal import inspection_view, print_view

        sizes = None if shape is None else _integers("--shape", shape)
        if sizes is None and (size is not None or channels != 3):
            sizes = (channels, size or 224, size or 224)
        with _working(quiet) as teller:
            teller.step("loading the network")
            network = load_model(model, weights)
            teller.step("tracing the network")
            found = api.inspect(network, sizes)
        if as_json:
            typer.echo(json.dumps(found.data(), indent=2, ensure_ascii=False))
        else:
            print_view(inspection_view(found, verbose=verbose))


@app.command()
def evaluate(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="An .onnx, .xml (OpenVINO) or .safetensors file, or as for prune."
        ),
    ],
    eval_data: Annotated[
        str,
        typer.Option(
            "--eval", metavar="DATA", help="Images, with labels if any, as for prune; all are used."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The network that weights are for: file.py:callable or the like."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Compare with it on the same images.")
    ] = None,
    size: Size = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    channels: Channels = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Silent = False,
) -> None:
    """Tell FILE's top-1 on labelled images, and how it compares with OTHER.

    Without labels in DATA, only agreement with OTHER is told, or the error of the first output
    where that is no table of scores. OTHER may be anything that FILE may
    be; --model serves both.
    """
    with _one_sentence():
        from secateur.data.sources import open_images
        from secateur.errors import SecateurWarning
        from secateur.evaluation.inference import answer, compare, one_answer
        from secateur.frontends.loading import load_network
        from secateur.render.terminal import verdict_lines

        preprocess = _preprocess(size, resize, mean, std, channels)
        with _working(quiet) as teller:
            teller.step("loading")
            network = load_network(file, model)
            others = [] if against is None else [load_network(against, model)]
            preprocess = _with_own(preprocess, network, *others)
            teller.step("evaluating")
            images = open_images(eval_data, preprocess=preprocess)
            answers = answer([network, *others], images, needs_labels=not others)
        output, *bases = answers.outputs
        base = bases[0] if bases else None
        found = [(file, compare(output, answers.labels, base))]
        doubts = images.doubts(answers.classes)
        if base is not None and answers.labels is None:
            doubts += one_answer(base, "images")
        for doubt in doubts:
            warnings.warn(doubt, SecateurWarning, stacklevel=2)
        if base is not None and against is not None:
            found.append((against, compare(base, answers.labels, base)))
        typer.echo(_json(found) if as_json else "\n".join(verdict_lines(found)))


@app.command()
def recipe(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="default, tuned, paper or a file.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it there.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
) -> None:
    """Show a recipe as TOML, to be changed and passed to --recipe."""
    with _one_sentence():
        import tomli_w

        from secateur.pruning.recipe import choose_recipe

        chosen = choose_recipe(name)
        if out is None:
            typer.echo(tomli_w.dumps(chosen.settings()), nl=False)
        else:
            chosen.save(out, force=force)


@app.command()
def fractals(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.")],
    count: Annotated[int, typer.Option(help="How many images.")] = 300,
    size: Annotated[int, typer.Option(help="Side of the square images, in pixels.")] = 224,
    channels: Annotated[int, typer.Option(help="3 (RGB) or 1 (grey).")] = 3,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace files in DIR.")] = False,
    quiet: Silent = False,
) -> None:
    """Write synthetic images (PNG) to calibrate on where there are no real ones."""
    with _one_sentence():
        from PIL import Image

        from secateur.data.fractals import fractal_images
        from secateur.errors import OptionError
        from secateur.support.files import output_folder

        if channels not in (1, 3):
            raise OptionError(f"--channels is {channels}, expected 3 (RGB) or 1 (grey)")
        with _working(quiet) as teller, output_folder(out, force=force) as folder:
            teller.step("making images")
            images = fractal_images(count, size=size, channels=channels, seed=seed)
            for index, image in enumerate(images):
                array = image.permute(1, 2, 0).squeeze(-1).numpy()
                Image.fromarray(array).save(folder / f"fractal-{index:05d}.png")
        typer.echo(f"{out}: {count} fractal images of {size} pixels, seed {seed}")


@app.command()
def pack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors or .onnx file.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="File to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.")] = False,
) -> None:
    """Write FILE smaller: zeros cost next to nothing, and unpack gives back every bit."""
    with _one_sentence():
        from secateur.export import packing

        size = packing.pack(file, out, force=force)
        typer.echo(f"{_written(out, size.packed)}, {size.ratio:.1%} of {file}")


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file made by pack.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="File to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.")] = False,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=0, help="Write no more; default: 1 GiB, or 256 times FILE if more."),
    ] = None,
) -> None:
    """Write the file that was packed as FILE, bit for bit."""
    with _one_sentence():
        from secateur.export import packing

        size = packing.unpack(file, out, force=force, max_bytes=max_bytes)
        typer.echo(_written(out, size.dense))


def _working(quiet: bool | None) -> AbstractContextManager[Teller]:
    """Tells on standard error what is done; print the result after it."""
    from secateur.support.progress import telling

    return telling(not quiet)


def _require(*, onnx: bool, openvino: bool, int8: bool) -> None:
    """Tells before long work what an option needs and the extra that installs it all."""
    from secateur.export.int8 import require_nncf
    from secateur.frontends import require_onnx
    from secateur.frontends.openvino.runtime import require_openvino

    asked = [name for name, of in (("openvino", openvino), ("int8", int8)) if of] or ["onnx"] * onnx
    if asked:
        purpose, extra = " ".join(f"--{name}" for name in asked), ",".join(asked)
        require_onnx(purpose, "onnxscript", extra=extra)
        if openvino:
            require_openvino(purpose, extra=extra)
        if int8:
            require_nncf(purpose, extra=extra)


def _json(found: Sequence[tuple[str, Evaluation]]) -> str:
    """The evaluations of a file and of the one that it is compared with."""
    held = [{"file": file, **dataclasses.asdict(of)} for file, of in found]
    both = dict(zip(("network", "against"), held, strict=False))
    return json.dumps(both, indent=2, ensure_ascii=False)


def _preprocess(
    size: int | None, resize: int | None, mean: str | None, std: str | None, channels: int
) -> Preprocess | None:
    from secateur.data.sources import Preprocess

    if size is resize is mean is std is None and channels == 3:
        return None
    return Preprocess(
        size=size,
        resize=resize,
        mean=_numbers("--mean", mean) if mean else None,
        std=_numbers("--std", std) if std else None,
        channels=channels,
    )


def _with_own(asked: Preprocess | None, *networks: Any) -> Preprocess | None:
    """What was asked for, with what a network from a hub brings where nothing was."""
    from secateur.data.preprocess import completed
    from secateur.frontends.hubs import own_preprocess

    own = next(filter(None, map(own_preprocess, networks)), None)
    if own is not None:
        typer.echo(
            f"secateur: note: pictures are prepared as the network says ({own}), but for what "
            "--size, --resize, --mean and --std say",
            err=True,
        )
    return completed(asked, own)


def _evaluation(source: str | None, preprocess: Preprocess | None) -> ImageStream | None:
    """All images of --eval, with labels where they have any; read when they are needed."""
    from secateur.data.sources import open_images

    return None if source is None else open_images(source, preprocess=preprocess)


def _common(
    recipe: Recipe,
    preprocess: Preprocess | None,
    include: list[str] | None,
    exclude: list[str] | None,
    max_images: int,
    max_columns: int,
    seed: int,
    device: str | None,
    teller: Teller,
) -> dict[str, Any]:
    """The arguments that `secateur.prune`, `plan` and `sweep` share."""
    return {
        "recipe": recipe,
        "preprocess": preprocess,  # for the report: the images are read already
        "include": include or None,
        "exclude": exclude or None,
        "max_images": max_images,
        "max_columns": max_columns,
        "seed": seed,
        "device": _device(device),
        "progress": teller,
    }


def _numbers(option: str, text: str, kind: type = float) -> tuple[Any, ...]:
    from secateur.errors import OptionError

    try:
        return tuple(kind(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise OptionError(
            f"{option} is {text!r}, expected numbers separated by commas: write them like 1,2,3"
        ) from None


def _integers(option: str, text: str) -> tuple[int, ...]:
    return _numbers(option, text, int)


def _device(name: str | None) -> Any:
    import torch

    from secateur.errors import OptionError

    if name is None:
        return None
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"--device is {name!r}, expected a device that this PyTorch can use, such as cpu: "
            f"{next(iter(str(error).splitlines()), 'not available')}"
        ) from error


def _least_bytes(network: Any, files: Sequence[str]) -> int:
    """What the files of prune will hold at least: all weights each, a quarter of that in INT8."""
    from torch.nn.parameter import is_lazy

    from secateur.frontends import saved_tensors

    held = [tensor for tensor in saved_tensors(network).values() if not is_lazy(tensor)]
    size = sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())  # tied ones once
    quarters = len([name for name in files if name in (INT8, INT8_IR)])
    return (len(files) - quarters) * size + quarters * size // 4


def _write(
    result: PruneResult, folder: Path, images: Any, files: list[str], source: str, teller: Teller
) -> dict[str, str]:
    """Writes all files; `images` are run through them to check them, and INT8 is fitted to them.

    Returns:
        Which of those after the first could not be written, and why; the others are no worse.
    """
    from secateur.errors import ModelError

    report, missing = result.report, dict[str, str]()
    ways = _ways(result, folder, images, source)
    for name in files:
        teller.step(f"writing and checking {name}")
        try:
            report.exports[name] = ways[name](folder / name)
        except (ModelError, MemoryError) as error:
            if name == files[0]:
                raise
            missing[name] = str(error) or "there is not enough memory"
            report.warnings.append(f"{name} was not written: {missing[name]}")
            _remove(folder / name)
        else:
            _warn(result, name)
    report.save(folder / REPORT)
    return missing


def _ways(
    result: PruneResult, folder: Path, images: Any, source: str
) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """How each file is written, by its name; each gives what was found out about it."""
    from secateur.errors import ModelError
    from secateur.export.files import as_onnx, save_int8, save_model, save_onnx, save_safetensors
    from secateur.frontends import is_onnx, read
    from secateur.frontends.torch.exported_programs import save_program

    parameters = _pruned_parameters(result)

    def exported() -> Any:
        if (folder / ONNX).exists():
            return read(folder / ONNX)
        return as_onnx(result.model, images) if result.exported is None else result.exported

    def write_int8(path: Path) -> dict[str, Any]:
        if result.quantized is None:
            raise ModelError(result.missing["int8"])
        return save_int8(result.quantized, path, images, exported())

    save = save_model if is_onnx(result.model) else save_onnx
    return {
        WEIGHTS: lambda path: save_safetensors(result.model, path, parameters),
        PROGRAM: lambda path: save_program(result.model, source, path),
        ONNX: lambda path: save(result.model, path, images, parameters),
        INT8: write_int8,
        IR: lambda path: _write_openvino(result, exported(), path, images, None),
        INT8_IR: lambda path: _write_openvino(result, exported(), path, images, images),
    }


def _remove(path: Path) -> None:
    """Takes away what is there of a file that could not be written, with what lies beside it."""
    for left in (path.with_suffix(".bin"), *path.parent.glob(f"{path.name}*")):
        left.unlink(missing_ok=True)
    if path.suffix == ".xml" and path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _not_written(missing: Mapping[str, str], out: Path) -> str:
    """The sentence for files that are not there, beside those that are."""
    reasons = "; ".join(f"{name} was not written: {why}" for name, why in missing.items())
    return f"{reasons}; the pruned network and the other files are in {out}"


def _write_openvino(
    result: PruneResult, pruned: Any, path: Path, images: Any, calibration: Any
) -> dict[str, Any]:
    from secateur.export.files import save_openvino
    from secateur.export.int8 import recurrent_note
    from secateur.frontends.openvino.runtime import read_ir

    check = save_openvino(pruned, path, images, int8=calibration)
    if calibration is not None and (note := recurrent_note(read_ir(path).model, INT8_IR)):
        result.report.notes.append(note)
    if result.evaluation_set is not None:
        name = INT8_IR if calibration is not None else IR
        result.report.evaluation[name] = result.evaluation_set.evaluate(read_ir(path))
    return check


def _warn(result: PruneResult, name: str) -> None:
    """A warning, in the report too, where a file does not give what the network gives."""
    from secateur.errors import SecateurWarning
    from secateur.export.files import differs, far_off
    from secateur.render.terminal import percent_text

    check = result.report.exports[name]
    if name in (INT8, INT8_IR) and far_off(check):
        told = (
            f"{name} is far from the network in float32: the error of its outputs is "
            f"{percent_text(check['output_error'])} of their variance: evaluate it before you "
            "ship it, or leave out INT8"
        )
    elif name in (ONNX, IR) and differs(check):
        told = (
            f"{name} differs from the network's outputs by {check['largest_difference']:.2g}"
            ", more than rounding would: evaluate it before you ship it"
        )
    else:
        return
    result.report.warnings.append(told)
    warnings.warn(told, SecateurWarning, stacklevel=2)


def _write_page(held: Report | Sweep, path: Path) -> str:
    """Writes a page; or why not, where the extra is not installed."""
    from secateur.errors import MissingExtraError

    try:
        held.save_page(path)
    except MissingExtraError as error:
        return str(error)
    return ""


def _tell(name: str, why: str) -> None:
    """That a page was not written, and what to install."""
    if why:
        typer.echo(f"secateur: note: {name} was not written: {why}", err=True)


def _pruned_parameters(result: PruneResult) -> list[str]:
    from secateur.frontends import named_tensors

    known = named_tensors(result.model)
    names = (layer.name for layer in result.report.layers)
    return [name if name in known else f"{name}.weight" for name in names]


def _show(result: PruneResult, out: Path, quiet: bool | None) -> None:
    """The whole report on a terminal, one line elsewhere."""
    from secateur.render.terminal import print_view, report_view, result_line
    from secateur.support.progress import on_terminal

    if quiet or (quiet is None and not on_terminal(sys.stdout)):
        typer.echo(f"{out}: {result_line(result.report)}")
    else:
        print_view(report_view(result.report))


def _sizes(folder: Path) -> dict[Path, int]:
    """Bytes of each file in a folder, by its path in there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder): path.stat().st_size for path in files}


def _list(out: Path, written: Mapping[Path, int]) -> None:
    """The files that were written, one per line."""
    for path, size in written.items():
        typer.echo(_written(out / path, size))


def _written(path: Path, size: int) -> str:
    return f"{path}: {size:,} bytes"


def _import_package() -> None:
    """Imports what every command needs, PyTorch above all: not before a command is to run."""
    if "secateur.api" not in sys.modules and threading.current_thread() is threading.main_thread():
        with ended_at_once():
            importlib.import_module("secateur.api")


_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Ends the program with exit status 2 and one sentence for a mistake or an interruption."""
    _import_package()
    from secateur.errors import SecateurError, SecateurWarning

    caught: list[warnings.WarningMessage] = []
    begin()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SecateurWarning)
            yield
    except SecateurError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail(interruption())
    except BrokenPipeError as error:
        if _is_read():  # it was another pipe; typer would end without a word
            raise RuntimeError("a pipe within the program broke") from error
        _point_nowhere(sys.stdout, sys.stderr)
        raise typer.Exit from None
    except MemoryError:
        _fail("out of memory: use fewer images (--max-images)")
    except RuntimeError as error:
        if not any(text in str(error) for text in _NO_MEMORY):
            raise
        _fail("out of memory: use fewer images (--max-images)")
    finally:
        for warning in caught:
            if issubclass(warning.category, SecateurWarning):
                typer.echo(f"secateur: warning: {one_line(str(warning.message))}", err=True)


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"secateur: error: {' '.join(sentence.split())}", err=True)
    raise typer.Exit(2)


_INTERRUPTED = 130  # what typer makes of Ctrl-C before a command begins and after it has ended


def main() -> None:
    """What `secateur.cli.main` runs; Ctrl-C and a polite kill leave nothing behind."""
    clean_up_when_killed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an old terminal may lack a letter
    # PyTorch asks for huge pages: fresh memory was filled twice as fast on Linux. Read at import.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        status = _answer()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _point_nowhere(sys.stdout, sys.stderr)
        status = 0
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _point_nowhere(sys.stdout)
        typer.echo(f"secateur: error: the output cannot be written ({error.strerror})", err=True)
        status = 2
    sys.exit(status)


def _answer() -> int:
    """Runs the command of the call; its exit status."""
    try:
        status = app(standalone_mode=False) or 0
    except typer.Abort:  # what older versions make of Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a mistake in the options
            raise
        return _usage(error)
    if status == _INTERRUPTED:
        raise KeyboardInterrupt
    return status


def _is_read() -> bool:
    """Whether somebody reads the output: `head` stops when it has read enough, which is fine."""
    try:
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), 0)  # asks for errors only
        return not pipe.poll(0)
    except (AttributeError, OSError, ValueError):  # no such question on Windows; no file at all
        return os.name != "nt"


def _point_nowhere(*streams: TextIO | None) -> None:
    """What is still to be printed is lost: Python would complain about it at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        if stream is not None:
            os.dup2(nowhere, stream.fileno())


def _usage(error: Any) -> int:
    """Tells a mistake in the options, which typer would frame, in one line."""
    if not error.format_message() or type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # no command at all: the help
    else:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "secateur"
        sentence = " ".join((_no_number(error) or error.format_message()).split()).rstrip(".")
        typer.echo(f"secateur: error: {sentence}: see {command} --help", err=True)
    return 2


def _no_number(error: Any) -> str:
    """What is wrong with an option that has to be a number; typer's versions differ in this."""
    message, option = error.format_message(), getattr(error, "param", None)
    kind = re.search(r"valid (number|float|integer)", message)
    if kind is None or option is None:
        return ""
    quoted = re.search(r"('.*') is not", message.rpartition(": ")[2])
    told = getattr(error.__cause__, "errors", None)
    value = quoted[1] if quoted else repr(told()[0]["input"]) if told else "something else"
    wanted = "a whole number" if kind[1] == "integer" else "a number"
    return f"{max(option.opts, key=len)} is {value}, expected {wanted}"
