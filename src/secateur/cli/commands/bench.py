"""`secateur bench`."""

from __future__ import annotations

import json

from secateur.cli import options
from secateur.cli.inputs import asked_preprocess, with_own
from secateur.cli.output import working
from secateur.errors import OptionError
from secateur.frontends.loading import load_model
from secateur.hardware.bench import bench
from secateur.hardware.bench_modules import bench_modules
from secateur.render.terminal import print_blocks
from secateur.support.files import check_file, write_file
from secateur.support.wording import counted


def run(asked: options.Bench) -> None:
    """Measures latencies, prints them, and writes them where that is asked for."""
    if asked.json is not None:
        check_file(asked.json, overwrite=asked.force)
    if asked.data is not None:
        _modules(asked)
        return
    for name in ("batches", "lengths", "compiled"):
        if getattr(asked, name):
            raise OptionError(f"got --{name} for files, expected modules: pass their --data")
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


def _modules(asked: options.Bench) -> None:
    """Measures modules, prints what was found, and writes it where that is asked for."""
    if len(asked.files) > 2:
        raise OptionError(f"got {len(asked.files)} modules, expected the dense and a pruned one")
    with working(asked.quiet) as teller:
        teller.step("loading the networks")
        dense, *others = (load_model(str(of), None) for of in asked.files)
        how = with_own(asked_preprocess(asked), asked.preprocess, dense)
        teller.step("measuring")
        result = bench_modules(
            dense,
            asked.data or "",
            pruned=others[0] if others else None,
            batches=asked.batches or (asked.batch,),
            lengths=asked.lengths,
            compiled=asked.compiled,
            threads=asked.threads or 1,
            rounds=asked.rounds,
            preprocess=how,
        )
    if asked.json is not None:
        text = json.dumps(result.data(), indent=2, ensure_ascii=False) + "\n"
        write_file(asked.json, text.encode(), overwrite=asked.force)
    print_blocks(result.blocks())
