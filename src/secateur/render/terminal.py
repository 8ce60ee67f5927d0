"""Tables, lines and notices on a terminal, or as plain text for files and pipes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from secateur.support.progress import on_terminal
from secateur.support.tables import Block, Notice, Table, plain, printable


def print_blocks(blocks: Sequence[Block]) -> None:
    """Prints on standard output; what is too long for a terminal is folded, never cut."""
    if on_terminal(sys.stdout):
        Console().print(rendered(blocks))
    else:
        print(plain(blocks))


def rendered(blocks: Sequence[Block]) -> Group:
    """Blocks as Rich shows them; text is as it is, and no markup."""
    return Group(*map(_rendered, blocks))


def _rendered(block: Block) -> RenderableType:
    if isinstance(block, Table):
        return _table(block.without_details())
    if isinstance(block, Notice):
        return Text(str(block), style="yellow")
    return Text(printable(block))


def _table(table: Table) -> RenderableType:
    shown = RichTable(box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        shown.add_column(Text(column.title), justify=column.align, overflow="fold")
    for row in table.texts():
        shown.add_row(*map(Text, row))
    return Group(Text(printable(table.title)), shown) if table.title else shown
