"""torch.compile of a network, block by block."""

from __future__ import annotations

from torch import nn


def compile_blocks(network: nn.Module) -> int:
    """Compiles every block of the network's lists of blocks by itself, in place; returns how many.

    Blocks of one class share their code, so that one of them is compiled and the others reuse it: seconds instead of
    the minutes that a whole transformer takes. Names and weights stay what they are.

    Raises:
        ValueError: if the network has no list of blocks.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    nested = {id(inner) for outer in lists for block in outer for inner in block.modules()}
    blocks = [block for outer in lists if id(outer) not in nested for block in outer]
    if not blocks:
        raise ValueError(
            f"compile_blocks: network must keep its blocks in a ModuleList, got {type(network).__name__} without one"
        )
    for block in blocks:
        block.compile()
    return len(blocks)
