"""What other packages log about their own internals, kept from users."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(*packages: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Hides warnings, and log messages below a level, while a block runs.

    Args:
        packages: names of loggers; those below them inherit.
        level: the least that is still logged.
    """
    loggers = [logging.getLogger(name) for name in packages]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, own in zip(loggers, before, strict=True):
            logger.setLevel(own)
