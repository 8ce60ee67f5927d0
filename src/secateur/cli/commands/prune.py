"""`secateur prune`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from torch.nn.parameter import is_lazy

from secateur import api
from secateur.cli import options
from secateur.cli.inputs import (
    asked_preprocess,
    asked_recipe,
    calibration_images,
    check_apart,
    common_arguments,
    with_own,
)
from secateur.cli.output import list_files, working
from secateur.cli.started import is_another
from secateur.data.preprocess import Preprocess
from secateur.data.text import Text
from secateur.errors import IncompleteError, OptionError
from secateur.export.files import rehearse
from secateur.export.int8 import check_kind, require_nncf
from secateur.frontends import Frontend
from secateur.frontends import open as open_model
from secateur.frontends.first_runs import one_first_run
from secateur.frontends.loading import is_program_file, load_model, saved_suffix
from secateur.frontends.openvino.runtime import require_openvino
from secateur.hardware import paying
from secateur.low_precision import check_accelerated
from secateur.options import Options
from secateur.pruning.recipe import Recipe
from secateur.render.terminal import print_blocks
from secateur.result import (
    INT8,
    INT8_IR,
    IR,
    ONNX,
    PAGE,
    REPORT,
    WEIGHTS,
    PruneResult,
    file_names,
)
from secateur.support.extras import require_onnx
from secateur.support.files import check_folder, check_space, rehearse_folder
from secateur.support.progress import Teller, on_terminal

ACCELERATED = "accelerated.safetensors"  # for `secateur.load_accelerated`


def run(asked: options.Prune) -> None:
    """Prunes and writes the files, or shows the plan of a dry run; the first process does so."""
    files = _files(asked)
    if asked.out is not None:
        more = [ACCELERATED] * (asked.runtime in paying.ACCELERATED)
        if not is_another():
            check_folder(asked.out, [*files, *more, REPORT, PAGE], overwrite=asked.force)
            rehearse_folder(asked.out, overwrite=asked.force)
        check_apart(asked.out, asked.work_dir)
    elif not asked.dry_run:
        raise OptionError("got no folder to write, expected -o OUT: or ask for --dry-run")
    recipe, preprocess = asked_recipe(asked), asked_preprocess(asked)
    _check(asked, recipe)  # a mistake shows now, not after the images are read
    _require(asked)
    if asked.dry_run or asked.out is None:
        _show_plan(asked, recipe, preprocess)
    else:
        _prune(asked, asked.out, files, recipe, preprocess)


def _check(asked: options.Prune, recipe: Recipe) -> None:
    """Raises where `prune` would refuse its target, or what goes with it."""
    Options.of(recipe=recipe, method=None, inputs=None, **_target(asked), **_runtime(asked))


def _show_plan(asked: options.Prune, recipe: Recipe, preprocess: Preprocess | Text | None) -> None:
    with working(asked.quiet) as teller:
        network, images, arguments = _read(asked, [], recipe, preprocess, teller)
        plan = api.plan(network, images, **arguments)
    print_blocks(plan.blocks())


def _prune(
    asked: options.Prune,
    out: Path,
    files: Sequence[str],
    recipe: Recipe,
    preprocess: Preprocess | Text | None,
) -> None:
    with working(asked.quiet) as teller:
        network, images, arguments = _read(asked, files, recipe, preprocess, teller)
        if is_another():
            api.prune(network, images, **arguments)
            return
        with one_first_run():
            _rehearse(asked, files, network, images.samples, teller)
            result = api.prune(network, images, **arguments)
            written, failure = _save(asked, out, result, teller)
            if result.acceleration is not None:
                result.acceleration.save(out / ACCELERATED, overwrite=asked.force)
                written = {**written, Path(ACCELERATED): (out / ACCELERATED).stat().st_size}
    _show(result, out, asked.quiet)
    list_files(out, written)
    if failure is not None:
        raise failure


def _save(
    asked: options.Prune, out: Path, result: PruneResult, teller: Teller
) -> tuple[Mapping[Path, int], IncompleteError | None]:
    """The files that were written, and why others were not."""
    formats = {"onnx": asked.onnx, "openvino": asked.openvino, "int8": asked.int8}
    try:
        return result.save(out, **formats, overwrite=asked.force, progress=teller), None
    except IncompleteError as error:
        return error.written, error


def _read(
    asked: options.Prune,
    files: Sequence[str],
    recipe: Recipe,
    preprocess: Preprocess | Text | None,
    teller: Teller,
) -> tuple[Frontend, Any, dict[str, Any]]:
    """The network, the images, and the other arguments of `secateur.prune`.

    Args:
        files: that are to be written; the disk has to have room for them.
    """
    teller.step("loading the network")
    network = open_model(load_model(asked.model, asked.weights))
    preprocess = with_own(preprocess, asked.preprocess, network.model)
    quantize = "int8" if asked.int8 else None
    check_kind(quantize, network)
    check_accelerated(asked.runtime, network)
    if asked.out is not None and files:
        check_space(asked.out, _least_bytes(network, files))
    teller.step("reading the images")
    takes = network.signature.masking(asked.mask)
    images = calibration_images(asked, preprocess, takes)
    common = common_arguments(asked, recipe, preprocess, takes, teller)
    return network, images, {"quantize": quantize, **_target(asked), **_runtime(asked), **common}


def _rehearse(
    asked: options.Prune, files: Sequence[str], network: Frontend, images: Any, teller: Teller
) -> None:
    """Writes the dense network in the formats that may fail, before the long work."""
    if {IR, INT8_IR} & {*files} or {WEIGHTS, ONNX} <= {*files}:
        teller.step("trying the formats on the dense network")
        rehearse(network, images, onnx=ONNX in files, openvino=asked.openvino, int8=asked.int8)


def _files(asked: options.Prune) -> list[str]:
    """The network's files that will be written."""
    return file_names(
        saved_suffix(asked.model),
        is_program_file(asked.model),
        onnx=asked.onnx,
        openvino=asked.openvino,
        int8=asked.int8,
    )


def _target(asked: options.Prune) -> dict[str, float | None]:
    return {
        "sparsity": asked.sparsity,
        "max_macs": asked.max_macs,
        "max_bytes": asked.max_bytes,
        "max_drop": asked.max_drop,
        "max_latency": asked.max_latency,
    }


def _runtime(asked: options.Prune) -> dict[str, Any]:
    """Where the time is measured, and what follows once channels have left."""
    return {
        "runtime": asked.runtime,
        "threads": asked.threads,
        "then_sparsity": asked.then_sparsity,
        "pattern": asked.pattern,  # given, they win over what pays on the runtime
        "allocation": asked.allocation,
    }


def _require(asked: options.Prune) -> None:
    """Tells before long work what an option needs and the extra that installs it all."""
    formats = [name for name in ("openvino", "int8") if getattr(asked, name)]
    formats = formats or ["onnx"] * (asked.onnx and saved_suffix(asked.model) != ".onnx")
    if formats:
        purpose, extra = " ".join(f"--{name}" for name in formats), ",".join(formats)
        require_onnx(purpose, "onnxscript", extra=extra)
        if asked.openvino:
            require_openvino(purpose, extra=extra)
        if asked.int8:
            require_nncf(purpose, extra=extra)


def _least_bytes(network: Frontend, files: Sequence[str]) -> int:
    """What the files of prune will hold at least: all weights each, a quarter of that in INT8."""
    tensors = [tensor for tensor in network.saved_tensors().values() if not is_lazy(tensor)]
    size = sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())  # tied ones once
    quarters = len([name for name in files if name in (INT8, INT8_IR)])
    return (len(files) - quarters) * size + quarters * size // 4


def _show(result: PruneResult, out: Path, quiet: bool | None) -> None:
    """Prints the whole report on a terminal, one line elsewhere."""
    if quiet or (quiet is None and not on_terminal(sys.stdout)):
        typer.echo(f"{out}: {result.report.result}")
    else:
        print_blocks(result.report.blocks())
