"""Processes that `torchrun` has started together: connected, and one sentence for all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
import typer

from secateur.cli.failures import one_sentence
from secateur.cli.started import is_another
from secateur.errors import SecateurError
from secateur.support.group import Group, together


def run_together(work: Callable[[], Any]) -> None:
    """Does some work in all processes; the first one prints, and the one that fails says why."""
    group = Group()
    if is_another():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        with one_sentence():
            _connect()
            try:
                with together() as group:
                    work()
            except (SecateurError, KeyboardInterrupt):
                if group.speaks:
                    raise
                raise typer.Exit(2) from None
    except typer.Exit:
        group.hear_out()
        raise
    finally:
        with suppress(RuntimeError, ValueError, AssertionError):
            dist.destroy_process_group()


def _connect() -> None:
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
