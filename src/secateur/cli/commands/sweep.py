"""`secateur sweep`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from secateur.cli import options
from secateur.cli.inputs import (
    asked_preprocess,
    asked_recipe,
    calibration_images,
    check_apart,
    common_arguments,
    with_own,
)
from secateur.cli.output import list_files, sizes, working
from secateur.errors import DataError
from secateur.frontends.loading import load_model
from secateur.frontends.loading import open as open_model
from secateur.pruning.targets import check_sparsities
from secateur.render.page import save_page
from secateur.render.terminal import print_blocks
from secateur.report.model import Report
from secateur.report.sweep import Sweep, SweepPoint
from secateur.support.files import check_folder, output_folder
from secateur.support.leftovers import clear_away
from secateur.sweeps import sweep

SWEEP, PAGE = "sweep.json", "sweep.html"


def run(asked: options.Sweep) -> None:
    """Prunes to each sparsity, writes the reports and prints the table."""
    check_folder(asked.out, [SWEEP, PAGE], overwrite=asked.force)
    check_apart(asked.out, asked.work_dir)
    earlier = _earlier_reports(asked.out) if asked.force else []
    sparsities = check_sparsities(asked.sparsities)
    recipe, preprocess = asked_recipe(asked), asked_preprocess(asked)
    with working(asked.quiet) as teller:
        teller.step("loading the network")
        network = load_model(asked.model, asked.weights)
        preprocess = with_own(preprocess, asked.preprocess, network)
        takes = open_model(network).signature.masking(asked.mask)
        teller.step("reading the images")
        images = calibration_images(asked, preprocess, takes)
        common = common_arguments(asked, recipe, preprocess, takes, teller)
        with output_folder(asked.out, overwrite=asked.force) as folder:
            result = sweep(network, images, sparsities=sparsities, **common)
            result.save(folder / SWEEP)
            for report in result.reports:
                report.save(folder / _report_name(report.requested["target"]["value"]))
            save_page(result, folder / PAGE)
            written = sizes(folder)
    _clear_away(asked.out, earlier, written)
    print_blocks(result.blocks())
    list_files(asked.out, written)


def _report_name(sparsity: float) -> str:
    return f"report-{sparsity:g}.json"


def _earlier_reports(folder: Path) -> list[str]:
    """The reports in a folder that are those of the sweep which `sweep.json` there tells of."""
    try:
        earlier = Sweep.load(folder / SWEEP)
        names = map(_report_name, earlier.requested["sparsities"])
        pairs = list(zip(names, earlier.points, strict=True))
    except (DataError, KeyError, TypeError, ValueError):
        return []
    return [name for name, point in pairs if _is_of(folder / name, point)]


def _is_of(path: Path, point: SweepPoint) -> bool:
    try:
        return SweepPoint.of(Report.load(path)) == point
    except (DataError, KeyError):
        return False


def _clear_away(folder: Path, earlier: Collection[str], written: Collection[Path]) -> None:
    """Removes the reports of an earlier sweep that were not replaced, and tells of all such files.

    A file that is not of the sweep that was there is somebody else's.
    """
    for path in sorted(folder.glob("report-*.json")):
        if Path(path.name) in written:
            continue
        clear_away(
            [path], listed=path.name in earlier, earlier="an earlier sweep", written="the sweep"
        )
