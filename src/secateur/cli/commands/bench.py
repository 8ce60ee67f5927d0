"""`secateur bench`."""

from __future__ import annotations

from secateur.cli import options
from secateur.cli.output import working
from secateur.hardware.bench import bench
from secateur.render.terminal import print_blocks
from secateur.support.files import check_file
from secateur.support.wording import counted


def run(asked: options.Bench) -> None:
    """Measures latencies, prints them, and writes them where that is asked for."""
    if asked.json is not None:
        check_file(asked.json, overwrite=asked.force)
    with working(asked.quiet) as teller:
        teller.step("measuring")
        result = bench(
            *asked.files,
            threads=asked.threads,
            batch=asked.batch,
            rounds=asked.rounds,
            sparse_rate=asked.sparse_rate,
            seed=asked.seed,
            progress=lambda done, total: teller.step(
                f"measuring, {done} of {counted(total, 'round')} done"
            ),
        )
    if asked.json is not None:
        result.save(asked.json, overwrite=asked.force)
    print_blocks(result.blocks())
