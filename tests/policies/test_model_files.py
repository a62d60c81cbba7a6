"""Model directories: weights from safetensors alone, no code, and one error that names the file."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.pipelines import flux_pipeline, qwen_image_pipeline, sd3_pipeline

from tempflow_fast.policies import FluxPolicy, QwenImagePolicy, SD3Policy
from tempflow_fast.run.load import load_policy

FAMILIES = {SD3Policy: sd3_pipeline, FluxPolicy: flux_pipeline, QwenImagePolicy: qwen_image_pipeline}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory of each family, to be left as it is."""
    root = tmp_path_factory.mktemp("models")
    for policy_class, build in FAMILIES.items():
        build(root / "tokenizer").save_pretrained(root / policy_class.__name__)
    return root


@pytest.fixture
def model(saved, tmp_path):
    """An SD3 directory to break."""
    return shutil.copytree(saved / "SD3Policy", tmp_path / "model")


def edited(file, **entries):
    """A JSON file with other entries."""
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def refused(model, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(str(model), resolution=16)
    assert "\n" not in str(caught.value)
    own = re.sub(r'"[^"]*"', "", str(caught.value))  # without what it quotes of other libraries' errors
    assert own.count(" must be ") == 1


@pytest.mark.parametrize("policy_class", FAMILIES, ids=lambda policy_class: policy_class.__name__)
def test_a_class_takes_its_own_family_alone(saved, policy_class):
    assert isinstance(policy_class.from_pretrained(saved / policy_class.__name__, resolution=16), policy_class)
    for other in FAMILIES.keys() - {policy_class}:
        name, directory = other.family.name, saved / other.__name__
        message = (
            rf"{policy_class.__name__}.from_pretrained: model must be a {policy_class.family.name}, got a {name}, "
        )
        with pytest.raises(ValueError, match=message):
            policy_class.from_pretrained(directory)
        pipeline = other.from_pretrained(directory, resolution=16).pipeline
        with pytest.raises(ValueError, match=rf"{policy_class.__name__}: pipeline must be a .*, got {name}"):
            policy_class(pipeline)


INDEX = {
    "a list": ("[]", "one with a JSON object in .*model_index.json', got list"),
    "no class": ("{}", "one with a text as _class_name in .*model_index.json', got None"),
    "a custom class": (
        '{"_class_name": ["pipeline", "Mine"]}',
        "one with a text as _class_name .*, got .'pipeline', 'M",
    ),
}


@pytest.mark.parametrize("kind", INDEX)
def test_an_index_that_is_none_is_named(model, kind):
    text, message = INDEX[kind]
    (model / "model_index.json").write_text(text)
    refused(model, rf"load_policy: model must be {message}")


def test_an_index_that_is_a_text_is_named(model):
    (model / "model_index.json").write_text("lorem ipsum")
    refused(model, "model_index.json must be a readable JSON file, got other content")


ENTRIES = {
    "transformer": "SD3Transformer2DModel",
    "vae": ["diffusers"],
    "text_encoder": [1, 2],
    "tokenizer": {"library": "transformers"},
    "scheduler": ["diffusers", ["FlowMatchEulerDiscreteScheduler"]],
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_of_a_wrong_type_is_named(model, name):
    edited(model / "model_index.json", **{name: ENTRIES[name]})
    refused(model, rf"model must be one with \[library, class\] for {name} in .*model_index.json")


@pytest.mark.parametrize("name", ["transformer", "vae", "scheduler", "text_encoder", "tokenizer_2"])
def test_a_part_that_is_missing_is_named(model, name):
    shutil.rmtree(model / name)
    refused(model, rf"model must be one with the directory, got '.*model/{name}'")
    edited(model / "model_index.json", **{name: [None, None]})
    refused(model, rf"model must be one with a {name} in .*model_index.json', got none")


def test_a_third_encoder_needs_its_tokenizer(model):
    edited(model / "model_index.json", tokenizer_3=["transformers", "CLIPTokenizer"])
    shutil.copytree(model / "tokenizer", model / "tokenizer_3")
    refused(model, r"model must be one with all or none of text_encoder_3, tokenizer_3, got \['text_encoder_3'\]")


@pytest.mark.parametrize(
    ("library", "class_name"), [("os", "system"), ("module_of_model", "Net"), ("../transformer", "Net")]
)
def test_code_is_not_imported(model, library, class_name):
    (model / "transformer" / "module_of_model.py").write_text(f"open({str(model / 'ran')!r}, 'w')")
    edited(model / "model_index.json", transformer=[library, class_name])
    refused(
        model, rf"one without code of its own \(allow_code lets it run\), got {library}.{class_name} as transformer"
    )
    assert not (model / "ran").exists()


def test_code_runs_where_the_user_allows_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    lines = ("from diffusers import SD3Transformer2DModel", "class Net(SD3Transformer2DModel): pass", "")
    (model / "transformer" / "module_of_model.py").write_text("\n".join(lines))
    edited(model / "model_index.json", transformer=["module_of_model", "Net"])
    policy = load_policy(str(model), resolution=16, allow_code=True)
    assert type(policy.network).__name__ == "Net"


def test_classes_that_do_not_exist_or_belong_elsewhere_are_named(model):
    edited(model / "model_index.json", vae=["diffusers", "NoSuchClass"])
    refused(model, "one of classes that diffusers has, got diffusers.NoSuchClass as vae in .*model_index.json")
    edited(model / "model_index.json", vae=["diffusers", "__version__"])
    refused(model, "one of classes that diffusers has, got diffusers.__version__ as vae")


CODE = {
    "kernel": {"attn_implementation": "someone/kernel"},
    "_kernel": {"_attn_implementation": "someone/kernel@main"},
}


@pytest.mark.parametrize("kind", CODE)
def test_settings_that_fetch_code_are_refused(model, kind):
    edited(model / "text_encoder" / "config.json", **CODE[kind])
    refused(model, "one without code of its own .*, got code that '.*text_encoder/config.json' names")


def test_automatic_classes_run_no_code_of_the_model(model):
    (model / "text_encoder" / "mine.py").write_text(f"open({str(model / 'ran')!r}, 'w')")
    edited(model / "text_encoder" / "config.json", auto_map={"AutoModel": "mine.Net"})
    edited(model / "model_index.json", text_encoder=["transformers", "AutoModel"])
    refused(model, "one without code of its own .*, got code that '.*text_encoder/config.json' names")
    assert not (model / "ran").exists()


def test_an_adapter_inside_a_part_is_refused(model):
    (model / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    refused(model, "one of merged parts, got an adapter, '.*text_encoder/adapter_config.json'")


WEIGHTS = {"text_encoder": "model.safetensors", "transformer": "diffusion_pytorch_model.safetensors"}
PARTS = pytest.mark.parametrize("part", WEIGHTS)


@PARTS
def test_a_pickle_is_not_opened(model, part, monkeypatch):
    weights = model / part / WEIGHTS[part]
    pickle = model / part / WEIGHTS[part].replace("model.safetensors", "pytorch_model.bin")
    torch.save(load_file(weights), pickle)
    weights.unlink()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was opened"))
    expected = "one with weights in safetensors files"
    refused(model, rf"model must be {expected}, got '{re.escape(str(pickle))}', which could hold code")
    shutil.move(pickle, weights)
    refused(
        model, rf"model must be a safetensors file, got '{re.escape(str(weights))}', a pickle, which could run code"
    )


BROKEN = {
    "a text": lambda data: b"weights\n" * 99,
    "a Git LFS pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\n",
    "which is empty": lambda data: b"",
    "cut off or damaged": lambda data: data[:-1],
    "cut off": lambda data: data[: len(data) // 2],
    "cut": lambda data: data[:9],
}


@pytest.mark.parametrize("kind", BROKEN)
@PARTS
def test_broken_weights_are_named(model, part, kind):
    weights = model / part / WEIGHTS[part]
    weights.write_bytes(BROKEN[kind](weights.read_bytes()))
    refused(model, rf"model must be a safetensors file, got '{re.escape(str(weights))}', {kind}")


@PARTS
def test_weights_that_are_missing_are_not_made_up(model, part):
    weights = model / part / WEIGHTS[part]
    tensors = load_file(weights)
    lost = sorted(tensors)[-1]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights, {"format": "pt"})
    refused(model, rf"model must be one with all its weights, got '.*model/{part}' without \['.*{lost[-12:]}'\]")


@PARTS
def test_weights_of_another_shape_are_refused(model, part):
    weights = model / part / WEIGHTS[part]
    tensors = load_file(weights)
    name = sorted(tensors)[-1]
    save_file(tensors | {name: torch.zeros(3)}, weights, {"format": "pt"})
    refused(model, rf"model must be one that can be loaded, got '.*model/{part}': ")


MAPS = ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "missing.safetensors", "config.json", 7]


@pytest.mark.parametrize("shard", MAPS)
@PARTS
def test_an_index_of_weights_stays_in_its_directory(model, part, shard):
    weights = model / part / WEIGHTS[part]
    index = weights.with_name(f"{weights.name}.index.json")
    weights.rename(weights.with_name("part-1.safetensors"))
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"weight": "part-1.safetensors", "bias": shard}}))
    refused(model, rf"model must be one whose '{re.escape(str(index))}' names files of its directory in weight_map")


@pytest.mark.parametrize("content", [{"weight_map": ["a"]}, {"weight_map": {}}, {}])
def test_an_index_without_a_map_is_named(model, content):
    (model / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))
    refused(model, "one whose '.*index.json' names files of its directory in weight_map")


CONFIGS = ["transformer/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json", "vae/config.json"]


@pytest.mark.parametrize("name", [*CONFIGS, "tokenizer/tokenizer_config.json"])
def test_settings_that_are_no_json_object_are_named(model, name):
    for text in ("[1, 2]", "{", "\x00"):
        (model / name).write_text(text)
        refused(model, rf"{name}'? must be a readable JSON file|model must be one with a JSON object in '.*{name}'")


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("scheduler/scheduler_config.json", {"shift": "three"}),
        ("transformer/config.json", {"num_layers": "two"}),
        ("text_encoder/config.json", {"hidden_size": []}),
        ("vae/config.json", {"block_out_channels": 8}),
    ],
)
def test_settings_of_a_wrong_type_name_the_part(model, name, entries):
    edited(model / name, **entries)
    refused(model, rf"model must be one that can be loaded, got '.*model/{name.partition('/')[0]}': ")


def test_a_tokenizer_without_its_files_is_named(model):
    (model / "tokenizer" / "tokenizer.json").unlink()
    refused(model, "one with the files of its tokenizers, got '.*model/tokenizer' without vocab.json and merges.txt")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("device", "meta", "device must be one that holds numbers, got 'meta'"),
        ("device", "tpu9", "device must be one that torch can use here, got 'tpu9'"),
        ("dtype", torch.int8, "dtype must be a torch.dtype of floating-point numbers, got torch.int8"),
        ("dtype", "bf16", "dtype must be a torch.dtype of floating-point numbers, got 'bf16'"),
        ("resolution", 16.0, "resolution must be a positive multiple"),
        ("resolution", (16, 16.0), "resolution must be a positive multiple"),
        ("max_text_length", "9", "max_text_length must be an integer, got '9'"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(saved, name, value, expected):
    with pytest.raises(ValueError, match=expected):
        load_policy(str(saved / "SD3Policy"), **{name: value})


def test_a_model_that_is_no_name_is_named():
    with pytest.raises(ValueError, match="load_policy: model must be a name or a path, got None"):
        load_policy(None)


@pytest.mark.parametrize("source", [None, 5])
@pytest.mark.parametrize("kind", [SD3Policy, FluxPolicy, QwenImagePolicy])
def test_a_source_that_is_no_path_is_named(kind, source):
    with pytest.raises(ValueError, match=r"model must be a directory or a name on the hub, got (NoneType|int)"):
        kind.from_pretrained(source)
