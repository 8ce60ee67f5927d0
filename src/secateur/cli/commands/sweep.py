"""`secateur sweep`."""

from __future__ import annotations

from secateur.api import check_sparsities, sweep
from secateur.cli import options
from secateur.cli.inputs import asked_preprocess, asked_recipe, common_arguments, with_own
from secateur.cli.output import list_files, sizes, working
from secateur.data.sources import load_images
from secateur.frontends.loading import load_model
from secateur.render.page import save_page
from secateur.render.terminal import print_blocks
from secateur.support.files import check_folder, output_folder

SWEEP, PAGE = "sweep.json", "sweep.html"


def run(asked: options.Sweep) -> None:
    """Prunes to each sparsity, writes the reports and prints the table."""
    check_folder(asked.out, [SWEEP, PAGE], overwrite=asked.force)
    sparsities = check_sparsities(asked.sparsities)
    recipe, preprocess = asked_recipe(asked), asked_preprocess(asked)
    with working(asked.quiet) as teller:
        teller.step("loading the network")
        network = load_model(asked.model, asked.weights)
        preprocess = with_own(preprocess, network)
        teller.step("reading the images")
        images = load_images(
            asked.data, preprocess=preprocess, max_images=asked.max_images, seed=asked.seed
        )
        common = common_arguments(asked, recipe, preprocess, teller)
        with output_folder(asked.out, overwrite=asked.force) as folder:
            result = sweep(network, images, sparsities=sparsities, **common)
            result.save(folder / SWEEP)
            for report in result.reports:
                report.save(folder / f"report-{report.requested['target']['value']:g}.json")
            save_page(result, folder / PAGE)
            written = sizes(folder)
    print_blocks(result.blocks())
    list_files(asked.out, written)
