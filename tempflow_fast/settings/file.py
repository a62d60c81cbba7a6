"""Settings from a file: YAML or JSON, by group, as a run directory holds them in config.json.

Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ..errors import fail, require
from ..files import read_json
from ..text import shortened
from .read import read_settings
from .run import TrainConfig

NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+")
"""Numbers such as 1e-4, which are texts to YAML 1.1."""


class _Loader(yaml.SafeLoader):
    """Plain values alone, each key once, no references: they could make a short file endless."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="a reference, which settings have no use for")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.MarkedYAMLError(problem=f"{shortened(repr(name))} is there twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def read_values(path: Path) -> dict[str, Any]:
    """Returns the settings that a file holds, by group; none of them is checked.

    Args:
        path: a .json file, or YAML with any other name.

    Raises:
        ValueError: naming the file, if it cannot be read or holds anything but an object.
    """
    data = read_json(path) if path.suffix == ".json" else _read_yaml(path)
    require(isinstance(data, Mapping), str(path), "the settings", "an object with groups", shortened(repr(data)))
    return dict(data)


def with_values(base: TrainConfig, values: Mapping[str, Any], source: str) -> TrainConfig:
    """Returns settings with those of a file.

    Args:
        base: gives what the file leaves out.
        values: from `read_values`.
        source: the path of the file, for errors.

    Raises:
        ValueError: naming the file, for a setting that does not exist, in the wrong group, or with a value that does
            not fit.
    """
    groups = asdict(base)
    homes = {name: group for group, settings in groups.items() for name in settings}
    for name, value in values.items():
        if name in homes and name not in groups:
            fail(source, name, f"in its group, {homes[name]}", "at the top of the file")
        known = isinstance(value, Mapping) and name in groups
        groups[name] = {**groups[name], **value} if known else value
    return read_settings(TrainConfig, groups, source)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        fail("read_values", "config", "a readable file of YAML or JSON", f"{str(path)!r}: {shortened(reason, 300)}")
