"""Configuration of classification runs: one yacs tree, filled in a fixed order.

Order, later wins: defaults -> the files in BASE -> the YAML -> ``--opts`` pairs -> the flags that
the user typed. Every flag defaults to "not typed", so a flag never overrides a YAML value behind
the user's back.

Keys of the original implementation that nothing here computes with, accepted so that its YAML
files load:

* ``TAG``         stored in the run's config.json, not used for paths.
* ``LOCAL_RANK``  holds ``--local-rank``, which old launchers pass; torchrun and Slurm set it
  through the environment.

Keys that the original implementation has but never reads, and that work here: ``EVAL_22K_TO_1K``
(a model with a 21841-class head is scored on the 1000 ImageNet classes through MODEL.HEAD_MAP),
``MODEL.DROP_RATE``, ``MODEL.DROP_PATH_TYPE``, ``DATA.ZIP_MODE`` and ``DATA.CACHE_MODE``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from yacs.config import CfgNode

from config_defaults import AT_LEAST, CHOICES, DEFAULTS, IN_0_1, LENGTHS
from config_values import FLAT_DEFAULTS, SECTIONS, ConfigError, coerce, flatten, nearest

_EXPLICIT = "_explicit_keys"  # attribute of the root node: keys typed by the user (--opts, flags)


def _leaf(config: CfgNode, key: str) -> tuple[CfgNode, str]:
    *parents, leaf = key.split(".")
    for parent in parents:
        config = config[parent]
    return config, leaf


def get_value(config: CfgNode, key: str) -> Any:
    """The value of a dotted key, e.g. ``get_value(config, 'DATA.IMG_SIZE')``."""
    node, leaf = _leaf(config, key)
    return node[leaf]


def _set(config: CfgNode, key: str, raw: Any, where: str) -> None:
    if key in SECTIONS:
        raise ConfigError(f"{where}: {key} is a section, give one of its keys")
    if key not in FLAT_DEFAULTS:
        hint = nearest(key, list(FLAT_DEFAULTS))
        raise ConfigError(f"{where}: unknown configuration key {key!r}{hint}")
    node, leaf = _leaf(config, key)
    node[leaf] = coerce(key, raw, where)


# ------------------------------------------------------------------------------------- files
def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = [str(p) for p in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
        known = nearest(str(path), names)
        raise ConfigError(f"configuration file {path} does not exist{known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold 'KEY: value' pairs, got a {type(tree).__name__}")
    return tree


def _flatten_file(tree: dict, path: Path, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name in SECTIONS:
            flat.update(_flatten_file(value, path, name + "."))
        elif value is None and name in SECTIONS:
            continue  # a section header with all of its keys commented out
        else:
            flat[name] = value
    return flat


def _merge_file(config: CfgNode, path: Path, chain: tuple[Path, ...] = ()) -> None:
    path = path.resolve()
    if path in chain:
        names = " -> ".join(p.name for p in (*chain, path))
        raise ConfigError(f"BASE of {chain[-1]} leads back to itself: {names}")
    flat = _flatten_file(_read_yaml(path), path)
    base = coerce("BASE", flat.pop("BASE", [""]), str(path))
    for name in base:
        if name:
            _merge_file(config, path.parent / name, (*chain, path))
    for key, value in flat.items():
        _set(config, key, value, str(path))
    config.BASE = base


# ------------------------------------------------------------------------------------- flags
# name of the flag in argparse -> key of the configuration
_FLAGS = {
    "batch_size": "DATA.BATCH_SIZE",
    "dataset": "DATA.DATASET",
    "data_path": "DATA.DATA_PATH",
    "zip": "DATA.ZIP_MODE",
    "cache_mode": "DATA.CACHE_MODE",
    "pretrained": "MODEL.PRETRAINED",
    "resume": "MODEL.RESUME",
    "accumulation_steps": "TRAIN.ACCUMULATION_STEPS",
    "use_checkpoint": "TRAIN.USE_CHECKPOINT",
    "amp_opt_level": "AMP_OPT_LEVEL",
    "output": "OUTPUT",
    "tag": "TAG",
    "eval": "EVAL_MODE",
    "throughput": "THROUGHPUT_MODE",
    "save_ckpt_num": "SAVE_CKPT_NUM",
    "use_zero": "TRAIN.OPTIMIZER.USE_ZERO",
    "fsdp": "TRAIN.FSDP",
    "local_rank": "LOCAL_RANK",
    "compile": "COMPILE",
    "device": "DEVICE",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of main.py, none with a default: a flag not typed changes nothing."""
    add = parser.add_argument
    add("--cfg", required=True, metavar="FILE", help="YAML experiment file")
    add(
        "--opts",
        nargs="+",
        action="extend",
        metavar="KEY VALUE",
        help="pairs that override the YAML, e.g. --opts TRAIN.EPOCHS 10 DATA.IMG_SIZE 128",
    )
    add("--batch-size", type=int, help="images per process and step")
    add("--dataset", help="|".join(CHOICES["DATA.DATASET"]))
    add("--data-path", metavar="DIR", help="root of the data set")
    add("--zip", action="store_true", default=None, help="read train.zip / val.zip under the root")
    add(
        "--cache-mode",
        help="with --zip: no = read on demand, part = cache this rank's share, full = all",
    )
    add("--pretrained", metavar="FILE", help="checkpoint to fine-tune from")
    add("--resume", metavar="FILE", help="checkpoint to continue from or to evaluate")
    add("--accumulation-steps", type=int, help="batches per optimizer step")
    add(
        "--use-checkpoint",
        action="store_true",
        default=None,
        help="recompute activations, less memory",
    )
    add("--amp-opt-level", help="O0 = float32, O1 or O2 = mixed precision with AMP_TYPE")
    add("--amp-dtype", help="float16 | bfloat16 | none: the dtype of mixed precision, or float32")
    add("--output", metavar="DIR", help="results go to DIR/<name of the YAML> (default: output)")
    add("--tag", help="label stored in config.json")
    add("--eval", action="store_true", default=None, help="evaluate only")
    add("--throughput", action="store_true", default=None, help="measure images per second only")
    add("--save-ckpt-num", type=int, help="how many periodic checkpoints to keep")
    add(
        "--use-zero", action="store_true", default=None, help="shard the optimizer state over ranks"
    )
    add(
        "--fsdp",
        action="store_true",
        default=None,
        help="shard weights, gradients and optimizer state over ranks (FSDP2, PyTorch >= 2.6)",
    )
    add("--local-rank", "--local_rank", type=int, help="passed by old launchers; not needed")
    add("--compile", action="store_true", default=None, help="run the model through torch.compile")
    add("--device", help="auto | cpu | cuda | cuda:N")


def _merge_opts(config: CfgNode, opts: Sequence[str]) -> list[str]:
    if len(opts) % 2:
        raise ConfigError(
            f"--opts needs KEY VALUE pairs, got an odd count of {len(opts)} words: "
            f"{' '.join(map(str, opts))!r}"
        )
    keys = list(opts[0::2])
    for key, value in zip(keys, opts[1::2], strict=True):
        _set(config, key, value, "--opts")
    return keys


def _merge_flags(config: CfgNode, args: argparse.Namespace) -> list[str]:
    keys = []
    for flag, key in _FLAGS.items():
        value = getattr(args, flag, None)
        if value is not None:
            _set(config, key, value, "--" + flag.replace("_", "-"))
            keys.append(key)
    dtype = getattr(args, "amp_dtype", None)
    if dtype is not None:
        level = getattr(args, "amp_opt_level", None)
        if level is not None and (level == "O0") != (dtype == "none"):
            raise ConfigError(
                f"--amp-opt-level {level} contradicts --amp-dtype {dtype}: type one of the two"
            )
        _set(config, "AMP_TYPE", dtype, "--amp-dtype")
        config.AMP_OPT_LEVEL = level or ("O0" if dtype == "none" else "O1")
        keys += ["AMP_TYPE", "AMP_OPT_LEVEL"]
    return keys


# ---------------------------------------------------------------------------------- validation
def _validate(config: CfgNode) -> None:
    config.MODEL.TYPE = config.MODEL.TYPE.lower()  # the default is spelled INTERN_IMAGE
    for key, allowed in CHOICES.items():
        value = get_value(config, key)
        if value not in allowed:
            names = ", ".join(repr(a) for a in allowed)
            hint = nearest(str(value), allowed)
            raise ConfigError(f"{key} is {value!r}, which does not exist{hint} (one of: {names})")
    for key, least in AT_LEAST.items():
        value = get_value(config, key)
        if value < least:
            raise ConfigError(f"{key} must be at least {least}, got {value}")
    for key in IN_0_1:
        value = get_value(config, key)
        if not 0 <= value <= 1:
            raise ConfigError(f"{key} must lie between 0 and 1, got {value}")
    for key, length in LENGTHS.items():
        value = get_value(config, key)
        if len(value) != length:
            raise ConfigError(f"{key} needs {length} entries, got {value}")
    device = config.DEVICE
    if device not in ("auto", "cpu", "cuda") and not device.removeprefix("cuda:").isdigit():
        raise ConfigError(f"DEVICE is {device!r}; one of: auto, cpu, cuda, cuda:N")
    minmax = config.AUG.CUTMIX_MINMAX
    if minmax is not None and not (len(minmax) == 2 and 0 <= minmax[0] <= minmax[1] <= 1):
        raise ConfigError(f"AUG.CUTMIX_MINMAX needs [low, high] within 0..1, got {minmax}")
    read, other = "INTERN_IMAGE", "FLASH_INTERN_IMAGE"
    if config.MODEL.TYPE == "flash_intern_image":
        read, other = other, read
    if config.MODEL[other] != DEFAULTS["MODEL"][other]:
        raise ConfigError(
            f"MODEL.{other} is set, but MODEL.TYPE {config.MODEL.TYPE} reads MODEL.{read}: move "
            "the options there"
        )
    net = config.MODEL[read]
    if len(net.DEPTHS) != len(net.GROUPS):
        raise ConfigError(
            f"MODEL.{read}.DEPTHS {net.DEPTHS} and GROUPS {net.GROUPS} must have one entry "
            "per stage"
        )


def _finish(config: CfgNode, stem: str | None, explicit: Sequence[str]) -> CfgNode:
    _validate(config)
    if stem is not None:
        config.MODEL.NAME = stem
        config.OUTPUT = str(Path(config.OUTPUT or "output") / stem)
    config.__dict__[_EXPLICIT] = frozenset(explicit)
    config.freeze()
    return config


# ------------------------------------------------------------------------------------ public
def default_config() -> CfgNode:
    """A fresh, unfrozen tree of the defaults."""
    return CfgNode(copy.deepcopy(DEFAULTS))


def load_config_file(path: str | Path, opts: Sequence[str] | None = None) -> CfgNode:
    """Read a YAML (with its BASE files) and optional ``KEY, VALUE, ...`` pairs.

    Args:
        path: YAML file.
        opts: flat list of pairs, as after ``--opts``.

    Returns:
        The frozen configuration; MODEL.NAME is the file's stem, OUTPUT is ``output/<stem>``.

    Raises:
        ConfigError: missing file, unknown key or value, wrong type, BASE cycle.
    """
    return get_config(argparse.Namespace(cfg=str(path), opts=list(opts or [])))


def get_config(args: argparse.Namespace) -> CfgNode:
    """Build the configuration of a run from parsed arguments (see `add_arguments`).

    Args:
        args: namespace with ``cfg``; any other flag may be absent or None, that is "not typed".

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: missing file, unknown key or value, wrong type, BASE cycle, flags that
            contradict each other.
    """
    config = default_config()
    path = Path(args.cfg)
    _merge_file(config, path)
    explicit = _merge_opts(config, getattr(args, "opts", None) or [])
    explicit += _merge_flags(config, args)
    return _finish(config, path.stem, explicit)


def is_typed(config: CfgNode, key: str) -> bool:
    """Whether the user typed this key, through ``--opts`` or a flag (not through a YAML)."""
    return key in config.__dict__.get(_EXPLICIT, ())


def config_to_dict(config: CfgNode) -> dict[str, Any]:
    """The configuration as nested plain dicts, safe for JSON and torch.load(weights_only=True)."""
    return {
        key: config_to_dict(value) if isinstance(value, dict) else copy.deepcopy(value)
        for key, value in config.items()
    }


def config_from_dict(tree: dict[str, Any], opts: Sequence[str] = ()) -> CfgNode:
    """The inverse of `config_to_dict`, frozen; keys that are absent take their defaults.

    Args:
        tree: nested plain dicts.
        opts: flat list of pairs that override them, as after ``--opts``.

    Raises:
        ConfigError: a key that does not exist, or a value of the wrong type.
    """
    config = default_config()
    for key, value in flatten(tree).items():
        _set(config, key, value, "configuration of the checkpoint")
    return _finish(config, None, _merge_opts(config, opts))


_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "none": None}


def amp_dtype(config: CfgNode, device: torch.device | str) -> torch.dtype | None:
    """The dtype for autocast on ``device``, or None for float32.

    AMP_OPT_LEVEL 'O0' is float32; 'O1' and 'O2' are AMP_TYPE; '' is AMP_TYPE where the device is
    good at it, which float16 on CPU is not.

    Raises:
        ConfigError: float16 was asked for on CPU.
    """
    if config.AMP_OPT_LEVEL == "O0":
        return None
    dtype = _DTYPES[config.AMP_TYPE]
    if dtype is torch.float16 and torch.device(device).type == "cpu":
        if config.AMP_OPT_LEVEL:
            raise ConfigError(
                "float16 mixed precision was asked for on CPU, where it is not used: "
                "type --amp-dtype bfloat16, or --amp-dtype none for float32"
            )
        return None
    return dtype
