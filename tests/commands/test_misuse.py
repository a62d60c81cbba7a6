"""Wrong ways to call the commands: each gets one message that names the thing and the way out, and nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tempflow_fast.cli import main
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.shapes import pipeline_path

TRAIN = ["train", "--output", "out"]
DRAW = ["sample", "--output", "out.png", "--prompt", "x", "--count", "1"]
DEAD = '{"remote": {"urls": "http://127.0.0.1:9"}}'
MODULES = {
    "cut_off": "def f(:\n",
    "raising": "raise RuntimeError('no network')\n",
    "leaving": "import sys\nsys.exit(0)\n",
    "odd": "number = 5\nclass Wrong:\n    def __init__(self): raise KeyError('k')\n    def __call__(self, *all): ...\n",
}
"""Modules of users' rewards."""
FILES = {
    **{"file": "a\n", "empty.txt": "", "one.txt": "a\n", "two.txt": "a\nb\n", "list.jsonl": "[1]\n"},
    **{"broken.jsonl": "{nope\n", "nameless.jsonl": '{"a": 1}\n', "numbers.jsonl": '{"prompt": 1}\n'},
    **{"used/file": "x", "used.png/x": "", "used.json/x": ""},
}
CONFIGS = {
    **{"text": "nope", "list": "[]", "null": "null", "deep": "[" * 100_000, "unknown": '{"x": {}}'},
    **{"word": '{"grpo": {"guided_training": "false"}}', "optimizer": '{"optimizer": {"optimizer": "sgd"}}'},
    **{"nan": '{"optimizer": {"learning_rate": NaN}}', "pair": '{"optimizer": {"betas": [0.9]}}'},
}
"""What config.json of a run directory may hold by mistake."""

USAGE = {
    "no command": ([""], "Available subcommands: train, sample, eval, "),
    "another command": (["trian"], "Available subcommands: train, sample, eval, "),
    "nothing to write": (["train"], "--output PATH"),
    "no value": (["train", "--output"], "Missing value for argument '--output'"),
    "a word too many": ([*TRAIN, "extra"], "Unrecognized options: extra"),
    "no dashes": (["train", "out"], "--output PATH"),
    "a text for an integer": ([*TRAIN, "--seed", "x"], "Error parsing --seed: invalid literal for int"),
    "nothing for an integer": ([*TRAIN, "--seed", ""], "Error parsing --seed: invalid literal for int"),
    "a float for an integer": ([*TRAIN, "--num-seeds", "16.0"], "--num-seeds: invalid literal for int() with base 10"),
    "a float for pixels": ([*TRAIN, "--resolution", "16.0"], "Error parsing --resolution"),
    "three sides": ([*TRAIN, "--resolution", "16", "16", "16"], "Error parsing --resolution"),
    "a comma for a point": ([*TRAIN, "--learning-rate", "0,001"], "--learning-rate: could not convert string to float"),
    "commas between steps": ([*TRAIN, "--branch-steps", "0,1"], "Error parsing --branch-steps"),
    "one of two": ([*TRAIN, "--betas", "0.9"], "Missing value for argument '--betas'"),
    "an option misspelt": ([*TRAIN, "--num-brunches", "2"], "Perhaps you meant: --num-branches"),
    "an option of none": (["info", "--device", "cpu"], "Unrecognized options"),
    "a choice misspelt": ([*TRAIN, "--sampler", "flow-sde"], "Expected one of ('flow_sde', 'dance_sde', 'cps')"),
    "a choice that is none": ([*TRAIN, "--precision", "fp16"], "Expected one of ('fp32', 'bf16')"),
    "a value for a flag": ([*TRAIN, "--dry-run=yes"], "Unrecognized options: yes"),
    "another way to resume": ([*TRAIN, "--resume", "maybe"], "Expected one of ('auto', "),
    "nothing to serve": (["serve-rewards"], "reward"),
    "a port that is a text": (["serve-rewards", "shapes", "--port", "x"], "Error parsing --port"),
    "an argument for recipes": (["recipes", "sd35m"], "Unrecognized options: sd35m"),
}
"""What the parser of options refuses: a box."""

RANGES = {
    **{"--seed": ["-1", str(2**40)], "--eval-seed": ["-1"], "--num-steps": ["0", "-3"]},
    **{
        "--branch-steps": ["", "99", "-1", "1 1"],
        "--sigmas": ["", "1", "0 1 2 3 4 5 6"],
        "--noise-level": ["-1", "nan"],
    },
    **{"--learning-rate": ["nan", "-1", "0", "1e400"], "--betas": ["0.9 1", "nan nan"], "--beta": ["nan", "-1"]},
    **{"--adv-clip": ["nan", "0"], "--max-grad-norm": ["nan", "-1"], "--clip-range": ["nan", "0", "2"]},
    **{"--guidance-scale": ["nan", "inf"], "--weight-decay": ["nan", "inf", "-1"], "--adam-eps": ["0", "inf"]},
    **{"--ema-decay": ["1", "nan"], "--minutes": ["0", "nan", "inf", "-1"], "--iterations": ["0", "-5"]},
    **{"--checkpoint-every": ["0"], "--num-checkpoints": ["0"], "--eval-images": ["0"], "--eval-every": ["0"]},
    **{"--memory-limit": ["nan", "0", "inf"], "--lora-rank": ["0", "-1"], "--lora-alpha": ["nan", "0"]},
    **{
        "--max-text-length": ["0"],
        "--num-branches": ["0", "1"],
        "--prompts-per-iteration": ["0"],
        "--max-batch": ["0"],
    },
}
"""Option -> values outside its range; the message has the name of the setting."""

TASKS = {
    "another recipe": ([*TRAIN, "--recipe", "sd35-geneval"], "got 'sd35-geneval' (did you mean sd35m-geneval"),
    "a recipe of no name": ([*TRAIN, "--recipe", ""], "one of flux-hps, "),
    "a recipe's data": ([*TRAIN, "--recipe", "sd35m-ocr"], "'dataset/ocr/train.txt'"),
    "another tracker": ([*TRAIN, "--trackers", "tensorbord"], "got 'tensorbord' (did you mean tensorboard?)"),
    "a tracker not installed": ([*TRAIN, "--trackers", "comet_ml"], "pip install comet_ml"),
    "steps without a schedule": ([*TRAIN, "--num-steps", "8"], "sigmas must be num_steps + 1 = 9 levels"),
    "prompts misspelt": ([*TRAIN, "--prompts", "shape"], "got 'shape' (did you mean shapes?)"),
    "prompts of no name": ([*TRAIN, "--prompts", ""], "an existing file or hf:NAME"),
    "a folder of prompts": ([*TRAIN, "--prompts", "used"], "'used'"),
    "a data set of no name": ([*TRAIN, "--prompts", "hf:"], "hf:"),
    "no prompt in a file": ([*TRAIN, "--prompts", "empty.txt"], "'empty.txt'"),
    "one prompt": ([*TRAIN, "--prompts", "one.txt"], "one.txt"),
    "prompts not in UTF-8": ([*TRAIN, "--prompts", "latin.txt"], "latin.txt"),
    "broken lines": ([*TRAIN, "--prompts", "broken.jsonl"], "line 1 of"),
    "lines that are lists": ([*TRAIN, "--prompts", "list.jsonl"], "a JSON object"),
    "lines without prompts": ([*TRAIN, "--prompts", "nameless.jsonl"], "nameless.jsonl"),
    "prompts that are numbers": ([*TRAIN, "--prompts", "numbers.jsonl"], "numbers.jsonl"),
    "held-out prompts missing": ([*TRAIN, "--eval-prompts", "nope.txt"], "'nope.txt'"),
}
REWARDS = {
    **{
        "pickscor": "got 'pickscor' (did you mean pickscore?)",
        "": "reward must be a name",
        "shapes=": "each name once",
    },
    **{"shapes=x": "weight of shapes must be a number", "shapes=nan": "weight of shapes must be finite"},
    **{"shapes=1,shapes=2": "each name once", "shapes=0": "different from 0", "{": "JSON", "{}": "at least one reward"},
    **{
        "cut_off:f": '"cut_off:f": SyntaxError: ',
        "raising:f": "RuntimeError: no network",
        "leaving:f": "SystemExit: 0",
    },
    **{"odd:number": "a callable or a class of one", "odd:Wrong": "odd:Wrong: KeyError: 'k'", "odd:nope": "'nope'"},
    **{"nowhere:f": "No module named 'nowhere'", ":": '"module:function"', ":f": '"module:function"'},
    **{"odd:": '"module:function"', ".odd:number": '"module:function"', "os:path.join": '"module:function"'},
    **{
        "remote": 'given as in {"remote": {"urls": "..."}}',
        DEAD: "reward servers that are up, got http://127.0.0.1:9: ",
    },
    **{'{"a": {"reward": 5}}': "reward of a must be a name", '{"shapes": []}': "weight of shapes", "{" * 3000: "JSON"},
    **{
        '{"shapes": {"nope": 1}}': "settings of shapes must be none",
        '{"shapes": {"timeout": -1}}': "timeout of shapes",
    },
    **{'{"shapes": {"cache": "x"}}': "num_entries must be an integer", '{"remote": {"urls": 5}}': "remote"},
    **{'{"remote": {"urls": ["file:///etc/passwd"]}}': "http://", '{"clip": {"nope": 1}}': "nope"},
}
"""A reward -> words of the message."""

MODELS = {
    "another model": ([*DRAW, "--model", "./nope"], "model must be 'embedded'"),
    "a model of no name": ([*DRAW, "--model", ""], "model must be 'embedded'"),
    "half a model": ([*DRAW, "--model", "used"], "model_index.json"),
    "a file for a model": ([*DRAW, "--model", "file"], "a directory with a model_index.json"),
    "a list for an index": ([*DRAW, "--model", "models/list"], "models/list"),
    "lists in an index": ([*DRAW, "--model", "models/lists"], "models/lists"),
    "no tokenizer": ([*DRAW, "--model", "models/tokenizer"], "tokenizer"),
    "no transformer": ([*DRAW, "--model", "models/transformer"], "models/transformer"),
    "a text for an adapter": ([*DRAW, "--lora", "file"], "file"),
    "a folder for an adapter": ([*DRAW, "--lora", "used"], "used"),
    "no adapter": ([*DRAW, "--lora", "nope"], "nope"),
    "another device": ([*DRAW, "--device", "gpu"], "one that torch can use here, got 'gpu'"),
    "a device without memory": ([*DRAW, "--device", "meta"], "device"),
    "a device of no name": ([*DRAW, "--device", ""], "device"),
    "a GPU too many": ([*DRAW, "--device", "cuda:99"], "device"),
    "pixels that do not fit": (
        ["eval", "--images", "1", "--resolution", "7"],
        "resolution must be a positive multiple",
    ),
    "layers that are none": ([*TRAIN, "--lora-rank", "4", "--lora-targets", "nope"], "targets"),
    "no layers": ([*TRAIN, "--lora-rank", "4", "--lora-targets"], "targets"),
    "a long text": ([*TRAIN, "--max-text-length", "100000"], "max_text_length must be in 1..512"),
}
PLACES = {
    "a directory in use": (["train", "--output", "used"], "new or empty directory, or that of a run"),
    "a directory of no name": (["train", "--output", ""], "new or empty directory, or that of a run"),
    "a file for a directory": (["train", "--output", "file"], "got 'file', which is a file"),
    "a directory in a file": (["train", "--output", "file/x"], "file"),
    "no place for a directory": (["train", "--output", "/proc/x"], "/proc"),
    "a name that is too long": (["train", "--output", "x" * 300], "File name too long"),
    "no resuming": (["train", "--output", "used", "--resume", "never"], "got 'used', which is not empty"),
    "no prompt": (["sample", "--output", "out.png"], "--prompt must be given, got none"),
    "an empty prompt": (["sample", "--output", "out.png", "--prompt", " "], "a text that is not blank, got ' '"),
    "no image": ([*DRAW, "--count=0"], "--count must be"),
    "a seed below 0": ([*DRAW, "--seed", "-1"], "--seed must be in 0..2^63-1, got -1"),
    "a seed too large": ([*DRAW, "--seed", str(2**64)], "--seed must be in 0..2^63-1"),
    "another picture format": (["sample", "--prompt", "x", "--output", "x.jpg"], "ends in .png, got 'x.jpg'"),
    "no picture format": (["sample", "--prompt", "x", "--output", ""], "ends in .png, got '.'"),
    "a folder for a picture": (["sample", "--prompt", "x", "--output", "used.png"], "Is a directory: 'used.png'"),
    "a picture in a file": (["sample", "--prompt", "x", "--output", "file/x.png"], "file/x.png"),
    "a folder for scores": (["eval", "--output", "used.json"], "Is a directory: 'used.json'"),
    "another format for scores": (["eval", "--output", "x.csv"], "ends in .json, got 'x.csv'"),
    "no place for scores": (["eval", "--output", "/proc/x.json"], "'/proc/x.json'"),
    "a run that is none": (["eval", "--weights", "used"], "config.json, got 'used'"),
    "a file for a run": (["sample", *DRAW[1:], "--weights", "file"], "config.json, got 'file'"),
    "a run without a model": (["eval", "--weights", "begun"], "where training has not ended"),
    "two models": (["eval", "--weights", "x", "--lora", "y"], "--lora must be left out with --weights, got y"),
    "no images": (["eval", "--images", "0"], "eval_images must be >= 1, got 0"),
    "images without a directory": (["eval", "--save-images"], "--save-images must be given together with --directory"),
    "images per no prompt": (["eval", "--per-prompt", "2"], "--per-prompt must be >= 1, with --prompts"),
    "images per drawn prompt": (
        ["eval", "--prompts", "shapes", "--per-prompt", "4"],
        "--per-prompt must be left out with --prompts shapes",
    ),
    "another evaluation": (["eval", "--directory", "out", "--compare", "used", "--images", "6"], "used"),
    "a file for an evaluation": (["eval", "--directory", "file", "--images", "6"], "file"),
    "rewards of no name": (["eval", "--rewards", "", "--images", "6"], "reward must be a name"),
    "an option twice": ([*TRAIN, "--seed", "1", "--seed", "2"], "--seed must be given once, got '1' and '2'"),
    "two names of an option": ([*TRAIN, "--iterations", "1", "--num_iterations=2"], "--iterations must be given once"),
    "yes and no": ([*TRAIN, "--dry-run", "--no-dry-run"], "--dry-run must be given once"),
    "a port out of range": (["serve-rewards", "shapes", "--port", "99999"], "port must be from 0 to 65535, got 99999"),
    "a port below 0": (["serve-rewards", "shapes", "--port", "-1"], "port must be from 0 to 65535, got -1"),
    "an address for everybody": (["serve-rewards", "shapes", "--host", "0.0.0.0"], "TEMPFLOW_FAST_TOKEN"),
    "more memory than there is": ([*TRAIN, "--lora-rank", str(2**50)], "reduce --max-batch or --micro-batch"),
    "controls in a name": ([*DRAW, "--model", "\x1b[31mred"], r"\x1b[31mred"),
    "a served reward misspelt": (["serve-rewards", "shape"], "did you mean shapes"),
}
LINES = {
    **{f"{option} {value}": ([*TRAIN, option, *value.split()], "") for option in RANGES for value in RANGES[option]},
    **{f"reward {name[:40]}": ([*TRAIN, "--reward", name], words) for name, words in REWARDS.items()},
    **{f"config.json {name}": (["train", "--output", f"configs/{name}"], "") for name in CONFIGS},
    **{f"weights with config.json {name}": (["eval", "--weights", f"configs/{name}"], "") for name in CONFIGS},
    **TASKS,
    **MODELS,
    **PLACES,
}
"""What gets one line."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A working directory with everything that the commands name."""
    place = tmp_path_factory.mktemp("misuse")
    texts = {f"{name}.py": text for name, text in MODULES.items()} | FILES
    for name, text in (texts | {f"configs/{name}/config.json": text for name, text in CONFIGS.items()}).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    (place / "latin.txt").write_bytes("ein Kreis\nein gr\xfcner Kreis\n".encode("latin-1"))
    RunDirectory(place / "begun").write_config(get_recipe("shapes"))
    for name in ("list", "lists", "tokenizer", "transformer"):
        shutil.copytree(pipeline_path(), place / "models" / name)
    index = json.loads((place / "models" / "lists" / "model_index.json").read_text())
    (place / "models" / "lists" / "model_index.json").write_text(json.dumps({**index, "transformer": []}))
    (place / "models" / "list" / "model_index.json").write_text("[]")
    for name in ("tokenizer", "transformer"):
        shutil.rmtree(place / "models" / name / name)
    return place


@pytest.fixture
def workplace(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = contents(prepared)
    yield prepared
    assert contents(prepared) == before, "nothing is lost, and nothing left"


def contents(place: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with its size and the time of its last change."""
    paths = [path for path in place.rglob("*") if "__pycache__" not in path.parts]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()}


def plain(text: str) -> str:
    """Boxed text without its box and line breaks."""
    return " ".join(re.sub("[╭╮╰╯│─]|-{9,}", " ", text).split())


@pytest.mark.parametrize(("arguments", "words"), LINES.values(), ids=LINES)
def test_misuse_gets_one_line(workplace, capsys, arguments, words):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"tempflow-fast {arguments[0]}: ")
    assert words in line
    assert len(line) < 1000
    if words == "" and arguments[0] == "train" and (option := arguments[3:4]):
        assert re.search(rf"\b(num_)?{option[0][2:].replace('-', '_')} must be ", line)


@pytest.mark.parametrize(("arguments", "words"), USAGE.values(), ids=USAGE)
def test_what_cannot_be_parsed_gets_a_box(workplace, capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = plain(capsys.readouterr().err)
    assert words in said
    assert "dummy" not in said
