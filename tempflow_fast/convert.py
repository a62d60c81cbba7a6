"""Makes a safetensors file of weights that were published as a pickle.

    python -m tempflow_fast.convert weights.pt weights.safetensors
    python -m tempflow_fast.convert owner/name:weights.pt weights.safetensors

This is the one place that opens a pickle of others. torch then reads tensors and containers alone, but its reader has
had faults: run this on weights that you trust.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import fail, require
from .files import written_aside
from .text import printable
from .weight_files import HUB_FILE, from_hub


def convert(source: str, output: Path) -> int:
    """Writes the tensors of a pickle, or of its entry `state_dict`, as a safetensors file.

    Args:
        source: a path, or "owner/name:file" on the hub.
        output: the file to write.

    Returns:
        The number of tensors.

    Raises:
        ValueError: if the source holds anything but tensors by name, or the output has another suffix.
        OSError: if there is no such source, or the output cannot be written.
    """
    from safetensors.torch import save_file

    require(output.suffix == ".safetensors", "convert", "output", "a file that ends in .safetensors", repr(str(output)))
    path = from_hub(source) if not Path(source).is_file() and HUB_FILE.fullmatch(source) else Path(source)
    require(path.is_file(), "convert", "source", "an existing file or owner/name:file on the hub", repr(source))
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the library's many readers
        reason = printable(" ".join(str(error).split())[:120])
        fail("convert", "source", "a file of tensors", f"{source!r}: {reason}")
    tensors: Any = found.get("state_dict", found) if isinstance(found, Mapping) else None
    are_tensors = isinstance(tensors, Mapping) and all(isinstance(value, torch.Tensor) for value in tensors.values())
    require(are_tensors, "convert", "source", "a file of names with tensors", f"{type(found).__name__} in {source!r}")
    with written_aside(output) as aside:
        save_file({str(name): value.clone().contiguous() for name, value in tensors.items()}, aside)
    return len(tensors)


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts one file.

    Args:
        arguments: of the command line; None: those of this process.
    """
    parser = argparse.ArgumentParser(description="Make a safetensors file of weights in a pickle that you trust.")
    parser.add_argument("source", help="the pickle: a file, or owner/name:file on the hub")
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        count = convert(options.source, options.output)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    print(f"wrote {options.output}: {count} tensors")


if __name__ == "__main__":
    main()
