"""How often an ONNX file has its first run, which is in a process of its own: once per call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# By a graph without its layers' weights: how many images it takes at a time; 0 = any number.
Known = dict[bytes, int]

_known: ContextVar[Known | None] = ContextVar("first_runs", default=None)


@contextmanager
def one_first_run() -> Iterator[None]:
    """Within this block a graph has one first run, whatever weights its layers have by then.

    A block within another one shares what that has found out.
    """
    outer = _known.get()
    token = _known.set({} if outer is None else outer)
    try:
        yield
    finally:
        _known.reset(token)


def known() -> Known | None:
    """What the block around has found out; None outside of any."""
    return _known.get()
