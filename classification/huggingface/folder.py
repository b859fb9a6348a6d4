"""A checkpoint of this project as a folder that transformers loads, and back.

The keys differ by the prefix `model.`, and the two vectors of the layer scale have another name:
transformers renames parameters called gamma when it loads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors

from models.safe_load import CheckpointError, load_file
from models.weights import describe

from .configuration_internimage import InternImageConfig
from .modeling_internimage import InternImageForImageClassification

PREFIX = "model."
RENAMED = {"gamma1": "layer_scale1", "gamma2": "layer_scale2"}
AUTO_MAP = {
    "AutoConfig": "configuration_internimage.InternImageConfig",
    "AutoModel": "modeling_internimage.InternImageModel",
    "AutoModelForImageClassification": ("modeling_internimage.InternImageForImageClassification"),
    "AutoBackbone": "modeling_internimage.InternImageBackbone",
}

State = dict[str, torch.Tensor]


def to_huggingface(state: Mapping[str, torch.Tensor]) -> State:
    """The same tensors under the keys of the models of transformers."""
    return {PREFIX + _rename(key, RENAMED): value for key, value in state.items()}


def from_huggingface(state: Mapping[str, torch.Tensor]) -> State:
    """The inverse of `to_huggingface`."""
    back = {new: old for old, new in RENAMED.items()}
    return {_rename(key.removeprefix(PREFIX), back): value for key, value in state.items()}


def _rename(key: str, names: Mapping[str, str]) -> str:
    *path, last = key.split(".")
    return ".".join([*path, names.get(last, last)])


def build(config: InternImageConfig, state: Mapping[str, torch.Tensor], source: str) -> Any:
    """The classification model of a configuration with the weights of a checkpoint, not copied.

    Args:
        config: with the checkpoint's number of classes.
        state: keys as in a checkpoint.
        source: name of the file, for messages.

    Raises:
        CheckpointError: keys are missing, not known, or have another shape.
        ValueError: the configuration is not one of a model.
    """
    with torch.device("meta"):
        model = InternImageForImageClassification(config)
    own = from_huggingface(model.state_dict())
    _check_keys(own, state, source)
    model.load_state_dict(to_huggingface({key: state[key] for key in own}), assign=True)
    return model.eval()


def _check_keys(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], source: str
) -> None:
    problems = []
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    for keys, what in ((missing, "missing"), (unknown, "not in the model"), (other, "in size")):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            problems.append(f"{len(keys)} {what}: {', '.join(keys[:3])}{more}")
    if not problems:
        return
    in_file, in_model = describe(state), describe(own)
    if in_file != in_model:
        problems.insert(0, f"the file has {in_file}, the model {in_model}")
    raise CheckpointError(
        f"{source} does not fit the model ({'; '.join(problems)}): give the configuration that the "
        "weights were trained with"
    )


def labels(names: Iterable[str] | None, count: int) -> dict[str, Any]:
    """Arguments of a configuration that name the classes; LABEL_0, ... without `names`."""
    if names is None:
        return {"num_labels": count}
    id2label = dict(enumerate(names))
    return {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}


def class_names(config: InternImageConfig) -> list[str] | None:
    """The names in label order, None if they are transformers' LABEL_0, LABEL_1, ..."""
    names = [config.id2label[index] for index in sorted(config.id2label)]
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that gets the name `path` when everything is in it, or disappears.

    Raises:
        FileExistsError: `path` is there already.
        OSError: the folder cannot be made.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another folder, or remove it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a container a killed program and the next one often have the same process number.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}): choose another place"
        ) from error
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(path: Path, model: Any, preprocessor: Mapping[str, Any], card: str) -> None:
    """Writes a folder: weights, configuration, image processing, model card and code.

    Raises:
        OSError: the folder exists or cannot be written. Nothing is left behind then.
    """
    model.config.auto_map = dict(AUTO_MAP)
    with new_folder(path) as folder:
        model.save_pretrained(folder)  # with its code
        text = json.dumps(preprocessor, indent=2) + "\n"
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        for file in folder.glob("*.safetensors"):  # written for the owner only
            shutil.copymode(folder / "config.json", file)


def read(path: Path) -> tuple[InternImageConfig, State, dict[str, Any]]:
    """Configuration, tensors (keys as in the folder) and image processing of a folder.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind of model.
    """
    settings = _read_json(path / "config.json")
    if settings.get("model_type") != InternImageConfig.model_type:
        kind = settings.get("model_type")
        raise CheckpointError(f"{path} is a {kind!r} model, not {InternImageConfig.model_type!r}")
    config = InternImageConfig.from_dict(settings)
    has_processor = (path / "preprocessor_config.json").is_file()
    processor = _read_json(path / "preprocessor_config.json") if has_processor else {}
    return config, _read_tensors(path), processor


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path} ({error}): give a folder in the format of transformers"
        ) from error


def _read_tensors(path: Path) -> State:
    index = path / "model.safetensors.index.json"
    pickled = path / "pytorch_model.bin"
    if pickled.is_file() and not index.is_file() and not (path / "model.safetensors").is_file():
        return load_file(pickled)
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(_read_json(index)["weight_map"].values()))
    state: State = {}
    for name in names:
        try:
            state.update(load_safetensors(path / name))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read the weights in {path / name} ({error})") from error
    return state
