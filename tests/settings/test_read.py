"""Settings from JSON have the types that their fields declare."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pytest

from tempflow_fast.settings.read import read_settings, typed

KIND = Literal["a", "b"]


@pytest.mark.parametrize(
    ("hint", "value", "result"),
    [
        (float, 1, 1.0),
        (int, 16.0, 16),
        (int | None, None, None),
        (bool, False, False),
        (KIND, "b", "b"),
        (tuple[int, ...] | None, [1, 2.0], (1, 2)),
        (tuple[float, float], [1, 0.5], (1.0, 0.5)),
        (int | tuple[int, int] | None, [3, 4], (3, 4)),
        (tuple[str, ...] | None, [], ()),
        (float, float("inf"), float("inf")),
    ],
)
def test_what_fits_has_the_type_of_its_field(hint, value, result):
    got = typed(hint, value, "file", "name")
    assert got == result
    assert type(got) is type(result)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (bool, "false", "true or false, got 'false'"),
        (bool, 1, "true or false, got 1"),
        (int, True, "an integer, got true"),
        (int, 1.5, "an integer, got 1.5"),
        (int | None, "3", "an integer or null, got '3'"),
        (float, "1e-3", "a number, got '1e-3'"),
        (float, float("nan"), "a number, got nan"),
        (float, None, "a number, got null"),
        (str, 5, "a text, got 5"),
        (KIND, "sgd", '"a" or "b", got \'sgd\''),
        (KIND, ["a"], '"a" or "b", got [\'a\']'),
        (tuple[float, float], [1.0], "a list of 2, each a number, got [1.0]"),
        (tuple[int, ...], [1, "2"], "a list of any length, each an integer, got [1, '2']"),
        (tuple[str, ...], "abc", "a list of any length, each a text, got 'abc'"),
    ],
)
def test_what_does_not_fit_is_named(hint, value, message):
    with pytest.raises(ValueError, match=re.escape(f"config.json: run.name must be {message}")):
        typed(hint, value, "config.json", "run.name")


@dataclass(frozen=True)
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("Inner: size must be >= 0")


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    name: str = "x"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "file: the settings must be an object, got []"),
        ({"inner": 3}, "file: inner must be an object, got 3"),
        ({"inner": {"size": "3"}}, "file: inner.size must be an integer, got '3'"),
        ({"inner": {"sizes": 3}}, "file: a setting in inner must be one of size, got 'sizes' (did you mean size?)"),
        ({"outer\x1b": 3}, r"file: a setting in the file must be one of inner, name, got 'outer\\x1b'"),
        ({"inner": {"size": -1}}, "file: Inner: size must be >= 0"),
    ],
)
def test_errors_name_the_source_and_the_place(data, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_settings(Outer, data, "file")


def test_a_missing_field_has_its_default():
    assert read_settings(Outer, {"inner": {}}, "file") == Outer()
