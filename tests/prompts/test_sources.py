"""Files and data sets as they really are: every prompt and every field arrives, or one sentence says why not."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from PIL import Image

from tempflow_fast.prompts.sources import read_prompts

LINES = ["a cat\u2028in\u0085a\vbig\fhat", "caf\u00e9", "日本 🙂"]
"""Everything in them that Unicode calls the end of a line is inside a prompt."""
ROWS = [{"prompt": line, "include": [{"class": "cat"}], "n": "1"} for line in LINES]
TABLE = [["prompt", "n"], *([line, "1"] for line in LINES)]


def written(directory: Path, name: str, content: str | bytes) -> str:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.txt", ["", *LINES, " "]),
        ("a", LINES),
        ("a.jsonl", [json.dumps(row, ensure_ascii=False) for row in ROWS]),
        ("a.NDJSON", ["", *map(json.dumps, ROWS)]),
        ("a.json", [json.dumps(ROWS, indent=1)]),
        ("b.json", ["[", ",".join(map(json.dumps, LINES)), "]"]),
        ("a.csv", [*(",".join(cells) for cells in TABLE), ""]),
        ("a.tsv", ["\t".join(cells) for cells in TABLE]),
    ],
)
def test_every_kind_of_file_gives_whole_prompts(tmp_path, name, lines, mark, end):
    entries = read_prompts(written(tmp_path, name, mark + end.join(lines)))
    assert [entry["prompt"] for entry in entries] == LINES


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", json.dumps({**ROWS[0], "x": {"y": [1, None]}}), {**ROWS[0], "x": {"y": [1, None]}}),
        ("a.json", json.dumps([{"prompt": "p", "tag": None, "n": [None]}]), {"prompt": "p", "n": [None]}),
        ("a.csv", 'prompt,n\n"a ""b"", c\nd",1\n', {"prompt": 'a "b", c\nd', "n": "1"}),
        ("a.tsv", 'n\tprompt\n1\t"a\tb"\n', {"prompt": "a\tb", "n": "1"}),
    ],
)  # fmt: skip
def test_every_field_reaches_the_reward(tmp_path, name, content, expected):
    assert read_prompts(written(tmp_path, name, content)) == [expected]


def test_data_sets_keep_nested_fields_and_times(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "prompt": "p",
            "tag": None,
            "include": [{"class": "cat", "color": None}, {"class": "dog", "color": "red"}],
            "box": {"size": [1, 2], "note": "x"},
            "made": datetime.datetime(2026, 1, 2, 3, 4, 5),
            "day": datetime.date(2026, 1, 2),
            "level": float("nan"),
            "raw": b"\xff",
        }
    ]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    assert read_prompts(f"hf:{tmp_path / 'set'}") == [
        {
            "prompt": "p",
            "include": [{"class": "cat"}, {"class": "dog", "color": "red"}],
            "box": {"size": [1, 2], "note": "x"},
            "made": "2026-01-02T03:04:05",
            "day": "2026-01-02",
        }
    ]


def test_a_very_long_line_is_one_prompt(tmp_path):
    assert len(read_prompts(written(tmp_path, "a.txt", "x" * 3_000_000))[0]["prompt"]) == 3_000_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "\n \n", "at least one prompt"),
        ("a.txt", "one\ntwo".encode("utf-16"), r"a\.txt must be a text in UTF-8, got byte 0xff in line 1"),
        ("a.txt", "one\ntwo".encode("utf-16-le"), "must be a text in UTF-8, got NUL in line 1"),
        ("a.txt", "one\ncaf\u00e9".encode("latin-1"), "must be a text in UTF-8, got byte 0xe9 in line 2"),
        ("a.txt", b"\x1f\x8b\x08\x00zip", "must be a text in UTF-8, got byte 0x8b in line 1"),
        ("a.txt", '{"prompt": "x"}\n', r"line 1 of .* must be a prompt, or the file's ending \.jsonl"),
        ("a.txt.gz", b"\x1f\x8b", r"ending of the source must be one of \.csv, .*\.txt, for .*, got '\.gz'"),
        ("a.parquet", b"PAR1", r"ending of the source must be one of .* got '\.parquet'"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', "line 2 of .* must be JSON"),
        ("a.jsonl", '["x"]\n', "line 1 of .* must be a JSON object"),
        ("a.jsonl", '{"prompt": " "}\n', "prompt of line 1 of .* must be a text, .* got ' '"),
        ("a.jsonl", '{"prompt": 7}\n', "prompt of line 1 of .* must be a text, .* got 7"),
        ("a.jsonl", '{"prompt": null}\n', "prompt of line 1 of .* must be a text, .* got None"),
        ("a.jsonl", '{"prompt": "a\\u0000b"}\n', "must be a text, not empty and without NUL"),
        ("a.jsonl", '{"prompts": "x"}\n', "line 1 of .* with the field 'prompt', .* got one with prompts"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', "prompt of line 1 of .* JSON in UTF-8 can hold, got a lone surrogate"),
        ("a.jsonl", '{"prompt": "x", "n": [{"\\ud800": 1}]}\n', "n of line 1 of .* got a lone surrogate"),
        ("a.jsonl", '{"prompt": "x", "n": NaN}\n', "n of line 1 of .* must be what JSON in UTF-8 can hold"),
        ("a.jsonl", '{"prompt": "x", "n": 1e999}\n', "n of line 1 of .* must be what JSON in UTF-8 can hold"),
        ("a.jsonl", '{"prompt": "x", "prompt": "y"}\n', r"line 1 of .* must be JSON, got .*: a key twice: \['prompt"),
        ("a.jsonl", '{"prompt": "x", "n": ' + "[" * 100_000, "line 1 of .* must be JSON, got "),
        ("a.jsonl", '{"prompt": "x", "n": ' + "1" * 5000 + "}", "line 1 of .* must be JSON, got "),
        ("a.jsonl", '{"prompt": "x", "tag": "overall"}\n', "tag of line 1 of .* must be a name .* than 'overall'"),
        ("a.jsonl", '{"prompt": "x", "tag": ["a"]}\n', "tag of line 1 of .* must be a name of a task"),
        ("a.jsonl", '{"prompt": "x", "tag": "\\u001b[2J"}\n', r"tag of line 1 of .* got '\\x1b\[2J'"),
        ("a.jsonl", '{"prompt": "x", "negative_prompt": "y"}\n', "negative_prompt of line 1 .* absent or empty"),
        ("a.json", '{"prompt": "x"}\n{"prompt": "y"}', "must be JSON, got .*Extra data"),
        ("a.json", '{"prompts": ["x"]}', r"must be a JSON list of objects or texts \(one .* \.jsonl\), got dict"),
        ("a.json", '["x", 3]', "must be a JSON list of objects or texts .* got 3 as item 2"),
        ("a.csv", "a cat\na dog\n", "line 2 of .* must be an entry with the field 'prompt', .* got one with a cat"),
        ("a.csv", "prompt;n\nx;1\n", "line 2 of .* with the field 'prompt', .* got one with prompt;n"),
        ("a.csv", "prompt,n\nx\n", "line 2 of .* must be 2 fields, got 1"),
        ("a.csv", "prompt,prompt\nx,y\n", "line 1 of .* must be names, each once"),
        ("a.csv", 'prompt\n"x\n', "line 2 of .* must be a row of a table"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path, name, content, words):
    with pytest.raises(ValueError, match=words) as caught:
        read_prompts(written(tmp_path, name, content))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{}", "source must be an existing file or hf:NAME, got .* \\(a directory\\)"),
        ("{}/none.txt", "source must be an existing file or hf:NAME, got '.*none.txt'$"),
        ("hf:", "source must be hf:NAME or hf:NAME:SPLIT, got 'hf:'"),
        ("hf::test", "source must be hf:NAME or hf:NAME:SPLIT, got 'hf::test'"),
        ("hf:{}", "source must be a data set that loads, got"),
    ],
)
def test_what_is_no_source_is_named(tmp_path, source, words):
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=words):
        read_prompts(source.format(tmp_path))


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a.png", "a.png"), (["a.png", "sub/b.png"], ["a.png", "sub/b.png"]), ([], None), ("", None)],
)
def test_paths_of_source_images_are_relative_to_the_file(tmp_path, given, expected):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    found = read_prompts(written(tmp_path, "a.jsonl", json.dumps({"prompt": "p", "image": given})))[0].get("image")
    paths = found if isinstance(found, list) else [found]
    whole = expected if isinstance(expected, list) else [expected]
    assert [path and Path(path) for path in paths] == [name and tmp_path / name for name in whole]
    assert isinstance(found, list) is isinstance(expected, list)


def test_a_data_set_names_source_images_in_a_column(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    rows = [{"prompt": "p", "image": "a.png"}, {"prompt": "q", "image": None}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert read_prompts("hf:set") == [{"prompt": "p", "image": "a.png"}, {"prompt": "q"}]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("none.png", r"an existing file, got '.*none\.png'"),
        (["a.jsonl"], r"an image file, got '.*a\.jsonl': cannot identify"),
        (3, "a path of an image file or a list of such paths, got 3"),
        ([{}], r"a path of an image file or a list of such paths, got \[{}\]"),
    ],
)
def test_what_is_no_source_image_is_refused_with_its_line(tmp_path, image, reason):
    source = written(tmp_path, "a.jsonl", json.dumps({"prompt": "p", "image": image}))
    with pytest.raises(ValueError, match=rf"read_prompts: image of line 1 of .*a\.jsonl must be {reason}"):
        read_prompts(source)
