"""Model directories in the layout of diffusers: every part is loaded from safetensors, and no code comes with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import fail, require
from ..files import read_json
from ..hub import INDEX, model_file, without_retries
from ..quiet import quiet
from ..text import shortened
from ..weight_files import conversion, opened_safetensors

LIBRARIES = ("diffusers", "transformers")
"""Where the classes of a pipeline's parts come from; a class of any other library is code that the model names."""
JSON_FILES = ("*config.json", "*.index.json", "tokenizer.json")
"""The files of a part that must hold JSON objects."""
WITHOUT_CODE = "without code of its own (allow_code lets it run)"


@contextmanager
def named(function: str, place: object) -> Iterator[None]:
    """Makes whatever diffusers and transformers raise over a broken file one error that names the place.

    Args:
        function: the caller, for the error.
        place: what is being loaded.

    Raises:
        ValueError: in place of any other exception.
    """
    try:
        yield
    except Exception as error:  # of any kind: the files decide where the libraries stumble
        reason = shortened(str(error).strip().partition("\n")[0], 300)
        got = f"{str(place)!r}: {reason or type(error).__name__}"
        raise ValueError(f"{function}: model must be one that can be loaded, got {got}") from error


def read_index(function: str, source: str | Path) -> dict[str, Any]:
    """Reads a model's model_index.json.

    Args:
        function: the caller, for the error.
        source: a directory, or a name on the Hugging Face hub.

    Returns:
        Its entries; `_class_name` is a text.

    Raises:
        ValueError: naming the file, if it cannot be read or names no pipeline class.
    """
    is_path = isinstance(source, str | Path)
    require(is_path, function, "model", "a directory or a name on the hub", type(source).__name__)
    file = model_file(function, str(source), INDEX)
    require(file.is_file(), function, "model", f"one with a {INDEX}", repr(str(file)))
    index = _json_object(function, file)
    name = index.get("_class_name")
    require(isinstance(name, str), function, "model", f"one with a text as _class_name in {str(file)!r}", repr(name))
    return index


@quiet(*LIBRARIES)
def load_pipeline(
    function: str,
    source: str | Path,
    pipeline_class: Any,
    dtypes: Mapping[str, torch.dtype],
    absent: Collection[str] = (),
    allow_code: bool = False,
) -> Any:
    """Loads a pipeline part by part, so that an error names the part.

    Args:
        function: the caller, for errors.
        source: a directory, or a name on the Hugging Face hub.
        pipeline_class: of diffusers.
        dtypes: part -> its precision; "default" for the others.
        absent: parts that may be missing, all or none, in addition to those that are optional to diffusers.
        allow_code: whether parts may come from other libraries and from modules in the directory.

    Returns:
        The pipeline.

    Raises:
        ValueError: naming the file that is missing, damaged, no safetensors file or refers to a path outside of its
            directory, or the part that is incomplete or code.
    """
    directory = Path(source)
    if not (directory / INDEX).is_file():
        with named(function, source), without_retries(source):
            directory = Path(pipeline_class.download(str(source), use_safetensors=True, trust_remote_code=allow_code))
    index = read_index(function, directory)
    parts: dict[str, Any] = {}
    optional = {*absent, *pipeline_class._optional_components}
    for name in sorted(pipeline_class._get_signature_keys(pipeline_class)[0]):
        library, class_name = _entry(function, directory / INDEX, name, index.get(name))
        if library is None:
            require(name in optional, function, "model", f"one with a {name} in {str(directory / INDEX)!r}", "none")
            parts[name] = None
        elif found := _part_class(function, directory, name, library, class_name, allow_code):
            part = _Part(function, directory / name, found, allow_code)
            parts[name] = part.load(dtypes.get(name, dtypes["default"]))
    halves = [name for name in absent if parts.get(name) is None]
    require(len(halves) in (0, len(absent)), function, "model", f"one with all or none of {', '.join(absent)}", halves)
    permission = {"trust_remote_code": allow_code, "use_safetensors": True}
    with named(function, directory):
        return pipeline_class.from_pretrained(str(directory), dtype=dict(dtypes), **permission, **parts)


def _entry(function: str, file: Path, name: str, entry: object) -> tuple[str | None, str]:
    """Library and class of a part; the library is None if there is no such part."""
    if entry is None or entry == [None, None]:
        return None, ""
    if isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry):
        return entry[0], entry[1]
    fail(function, "model", f"one with [library, class] for {name} in {str(file)!r}", shortened(repr(entry)))


def _part_class(
    function: str, directory: Path, name: str, library: str, class_name: str, allow_code: bool
) -> Any | None:
    """The class of a part; None for one of another library, which diffusers loads if the user allows code."""
    import diffusers.pipelines

    own = getattr(diffusers.pipelines, library, None) if library.isidentifier() else None  # such as "stable_diffusion"
    got = f"{library}.{class_name} as {name} in {str(directory / INDEX)!r}"
    if library not in LIBRARIES and own is None:
        require(allow_code, function, "model", f"one {WITHOUT_CODE}", got)
        return None
    found = getattr(own or import_module(library), class_name, None)
    require(hasattr(found, "from_pretrained"), function, "model", f"one of classes that {library} has", got)
    return found


class _Part:
    """One part of a pipeline, in its directory."""

    def __init__(self, function: str, directory: Path, part_class: Any, allow_code: bool) -> None:
        self.function, self.directory, self.part_class, self.allow_code = function, directory, part_class, allow_code

    def load(self, dtype: torch.dtype) -> Any:
        self._require(self.directory.is_dir(), "one with the directory", f"{str(self.directory)!r}: no such directory")
        configs = {file: _json_object(self.function, file) for kind in JSON_FILES for file in self.directory.glob(kind)}
        self._check_code(configs)
        is_model = isinstance(self.part_class, type) and issubclass(self.part_class, nn.Module)
        if is_model or self._is_auto_model:
            self._check_weights()
            return self._model(dtype)
        self._check_vocabulary()
        with named(self.function, self.directory):
            return self.part_class.from_pretrained(str(self.directory), **self._permission)

    def _model(self, dtype: torch.dtype) -> nn.Module:
        with named(self.function, self.directory):
            model, report = self.part_class.from_pretrained(
                str(self.directory), dtype=dtype, use_safetensors=True, output_loading_info=True, **self._permission
            )
        # The libraries make up weights that a file lacks, and only warn.
        missing = sorted(report["missing_keys"])
        self._require(not missing, "one with all its weights", f"{str(self.directory)!r} without {missing[:3]}")
        return model

    @property
    def _is_auto(self) -> bool:
        return self.part_class.__name__.startswith("Auto") and self.part_class.__module__.startswith("transformers.")

    @property
    def _is_auto_model(self) -> bool:
        return self._is_auto and "Model" in self.part_class.__name__

    @property
    def _permission(self) -> dict[str, bool]:
        return {"trust_remote_code": self.allow_code} if self._is_auto else {}

    def _check_code(self, configs: Mapping[Path, Mapping[str, Any]]) -> None:
        """Refuses settings that make transformers fetch or run code, or take weights from elsewhere."""
        for file, config in configs.items():
            kernels = [str(config.get(name)) for name in ("attn_implementation", "_attn_implementation")]
            runs = (self._is_auto and "auto_map" in config) or any("/" in kernel for kernel in kernels)
            self._require(self.allow_code or not runs, f"one {WITHOUT_CODE}", f"code that {str(file)!r} names")
        adapter = self.directory / "adapter_config.json"
        self._require(not adapter.exists(), "one of merged parts", f"an adapter, {str(adapter)!r}")

    def _check_vocabulary(self) -> None:
        """Refuses a tokenizer without its files: transformers makes up a vocabulary of a few marks."""
        files = dict(getattr(self.part_class, "vocab_files_names", {}))  # of tokenizers alone
        whole = files.pop("tokenizer_file", None)
        missing = [name for name in files.values() if not (self.directory / name).is_file()]
        if whole is None or not (self.directory / whole).is_file():
            got = f"{str(self.directory)!r} without {' and '.join(missing)}"
            self._require(not missing, "one with the files of its tokenizers", got)

    def _check_weights(self) -> None:
        """Refuses a part whose weights are no safetensors files of its own directory."""
        files = sorted(self.directory.glob("*.safetensors"))
        if not files:
            others = [file for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in self.directory.glob(kind)]
            got = f"{str(self.directory)!r} without any"
            for file in others[:1]:
                new = self.directory / f"{file.stem.removeprefix('pytorch_')}.safetensors"
                got = f"{str(file)!r}, which could hold code{conversion(str(file), str(new))}"
            fail(self.function, "model", "one with weights in safetensors files", got)
        for file in self.directory.glob("*.safetensors.index.json"):
            weights = _json_object(self.function, file).get("weight_map")
            shards = list(weights.values()) if isinstance(weights, dict) else []
            expected = f"one whose {str(file)!r} names files of its directory in weight_map"
            self._require(bool(shards), expected, shortened(repr(weights)))
            for shard in dict.fromkeys(map(str, shards)):
                inside = Path(shard).name == shard and (self.directory / shard) in files
                self._require(inside, expected, repr(shortened(shard)))
        for file in files:
            with opened_safetensors(self.function, "model", file):
                pass

    def _require(self, holds: bool, expected: str, got: str) -> None:
        require(holds, self.function, "model", expected, got)


def _json_object(function: str, file: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    content = read_json(file)
    expected = f"one with a JSON object in {str(file)!r}"
    require(isinstance(content, dict), function, "model", expected, type(content).__name__)
    return content
