"""What train.py and test.py of every task share: arguments, config, logs, seeds."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
import random
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv import Config, ConfigDict
from mmcv.runner import get_dist_info, set_random_seed

from .config_checks import KeyValues, close_copy, config_fault, move_data
from .distributed import LAUNCHERS, agree, choose_device

logger = logging.getLogger(__name__)

# options that programs read from a config although no config of the project sets them
OPTIONAL_KEYS = (
    "auto_resume",
    "auto_scale_lr",
    "custom_hooks",
    "custom_imports",
    "evaluation",
    "find_unused_parameters",
    "fp16",
    "load_from",
    "model_wrapper",
    "momentum_config",
    "mp_start_method",
    "opencv_num_threads",
    "resume_from",
    "seed",
    "tta_scales",
    "work_dir",
)
TYPO = 0.8  # difflib's ratio from which a new key is taken for a misspelt one


class ConfigError(ValueError):
    """A config cannot be used as it is; the message says which and what to do."""


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that training and testing have in common."""
    parser.add_argument("config", help="config file, for example configs/coco/NAME.py")
    parser.add_argument(
        "--work-dir", help="folder for everything the run writes; default work_dirs/CONFIG"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=KeyValues,
        metavar="KEY=VALUE",
        help="change the config, for example data.samples_per_gpu=4 model.backbone.with_cp=True",
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="what started this")
    parser.add_argument(
        "--local_rank",
        "--local-rank",
        type=int,
        help="set by torch.distributed.launch; torchrun sets LOCAL_RANK instead",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: the GPU if there is one",
    )


def add_gpu_arguments(parser: argparse.ArgumentParser) -> None:
    """The three ways to name the one GPU of a run without launcher, two of them old."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--gpu-id", type=int, default=0, help="GPU of a run without launcher")
    group.add_argument("--gpu-ids", type=int, nargs="+", help="old: the first one is used")
    group.add_argument("--gpus", type=int, help="old: number of GPUs, counts as 1 without launcher")


def chosen_gpu(args: argparse.Namespace) -> int:
    """The GPU that the arguments name; old ways to name it are told."""
    if args.gpus is not None:
        logger.warning(
            "--gpus is out of use: a run without launcher uses one GPU; for %d use "
            "`bash dist_train.sh CONFIG %d`",
            args.gpus,
            args.gpus,
        )
        return 0
    if args.gpu_ids is not None:
        logger.warning("--gpu-ids is out of use: --gpu-id %d is meant", args.gpu_ids[0])
        return args.gpu_ids[0]
    return args.gpu_id


def config_options(args: argparse.Namespace, old: str) -> dict[str, Any] | None:
    """--cfg-options, or the old spelling in `args.<old>`.

    Raises:
        ConfigError: both are given.
    """
    former = getattr(args, old)
    if former is None:
        return args.cfg_options
    if args.cfg_options is not None:
        raise ConfigError(f"--{old} is the old name of --cfg-options; give only --cfg-options")
    logger.warning("--%s is out of use: write --cfg-options", old)
    return former


def start_device(args: argparse.Namespace, gpu_id: int) -> str:
    """'cpu' or 'cuda' for the run.

    Raises:
        LaunchError: --device cuda without a GPU.
        ConfigError: there is no such GPU.
    """
    if args.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    device = choose_device(args.device)
    if device == "cuda" and args.launcher == "none":
        count = torch.cuda.device_count()
        if not 0 <= gpu_id < count:
            raise ConfigError(f"--gpu-id {gpu_id}: this machine has the GPUs 0 to {count - 1}")
        torch.cuda.set_device(gpu_id)
    return device


def load_config(
    path: str, options: dict[str, Any] | None = None, parts: Sequence[str] = ("model", "data")
) -> Config:
    """The config file with `options` (dotted keys) merged into it.

    Args:
        path: the file.
        options: of the command line.
        parts: what it must have.

    Raises:
        ConfigError: no such file (the nearest names are given), an error in it, a part that it
            lacks, or an option that looks like a misspelt key of it.
    """
    if not Path(path).is_file():
        raise ConfigError(missing_config(path))
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        close_copy(error)
        raise ConfigError(f"{path} is not valid Python: {error}") from error
    except (
        KeyError,
        TypeError,
        NameError,
        AttributeError,
        OSError,
        ImportError,
    ) as error:
        close_copy(error)
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    for key in options or {}:
        check_option(cfg, key)
    if options and isinstance(options.get("data_root"), str):
        move_data(cfg, options["data_root"])
    try:
        cfg.merge_from_dict(options or {})
    except (KeyError, TypeError, AssertionError) as error:
        raise ConfigError(f"--cfg-options cannot be merged into {path}: {error}") from error
    if fault := config_fault(cfg, parts):
        raise ConfigError(f"{path} cannot be used: {fault}")
    return cfg


def missing_config(path: str) -> str:
    """The sentence for a config that is not there, with the nearest ones that are."""
    wanted = Path(path)
    known = {found.stem: found for found in sorted(Path("configs").rglob("*.py"))}
    near = difflib.get_close_matches(wanted.stem, known, n=3, cutoff=0.4)
    message = f"config {path} does not exist (working directory {Path.cwd()})"
    if near:
        return f"{message}. Did you mean {', '.join(str(known[name]) for name in near)}?"
    return message


def check_option(cfg: Config, key: str) -> None:
    """Raises ConfigError for a key that is nearly one of the config; tells of other new keys."""
    place: Any = cfg._cfg_dict
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(place, (list, tuple)):
            if not part.isdigit():
                raise ConfigError(
                    f"--cfg-options {key}: {'.'.join(parts[:depth])} is a list of {len(place)}; "
                    f"give a number instead of {part!r}"
                )
            if int(part) >= len(place):
                raise ConfigError(
                    f"--cfg-options {key}: {'.'.join(parts[:depth])} has {len(place)} entries"
                )
            place = place[int(part)]
            continue
        if not isinstance(place, dict):
            return  # a value is replaced by a dictionary: mmcv's merge says what it thinks of it
        if part not in place:
            report_new_key(key, parts[:depth], part, place)
            return
        place = place[part]


def report_new_key(key: str, parents: list[str], part: str, place: dict) -> None:
    """Raises ConfigError when `part` looks like one of the keys of `place`, else warns."""
    if (not parents and part in OPTIONAL_KEYS) or part.endswith("_dataloader"):
        return
    known = [*place, *(() if parents else OPTIONAL_KEYS)]
    where = ".".join(parents) or "the config"
    if typo := difflib.get_close_matches(part, known, n=1, cutoff=TYPO):
        raise ConfigError(
            f"--cfg-options {key}: {where} has no {part!r}; did you mean {typo[0]!r}?"
        )
    near = difflib.get_close_matches(part, known, n=3, cutoff=0.4) or sorted(known)[:8]
    logger.warning("--cfg-options %s is new: %s has %s", key, where, ", ".join(map(str, near)))


def choose_work_dir(cfg: Config, work_dir: str | None) -> str:
    """--work-dir, or the config's, or work_dirs/NAME; made, and checked that it can be written.

    Raises:
        ConfigError: it cannot.
    """
    name = Path(cfg.filename).stem if cfg.filename else "run"
    cfg.work_dir = str(Path(work_dir or cfg.get("work_dir") or Path("work_dirs") / name).absolute())
    make_folder(cfg.work_dir, "work dir")
    return cfg.work_dir


def make_folder(path: str | Path, what: str) -> None:
    """Makes a folder and checks that it can be written, before a long run finds out that it cannot.

    Raises:
        ConfigError: it cannot.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        probe = Path(path) / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{what} {path} cannot be written ({reason})") from error


@contextlib.contextmanager
def naming_full_disks(path: str | Path | None) -> Iterator[None]:
    """Errors of writing `path` that do not name a file (a full disk) get its name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.strerror is None:
            raise
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def share_handlers(main: logging.Logger, *names: str) -> None:
    """Lets the named loggers write where `main` writes (console and log file)."""
    for name in names:
        other = logging.getLogger(name)
        other.handlers = list(main.handlers)
        other.setLevel(main.level)
        other.propagate = False


def choose_seed(seed: int | None, diff_seed: bool = False, deterministic: bool = False) -> int:
    """Seeds python, numpy and torch; returns the seed of this process.

    Args:
        seed: None: a random one, the same for every process.
        diff_seed: add the rank.
        deterministic: cuDNN picks deterministic kernels (slower).
    """
    if seed is None:
        seed = agree(int(np.random.randint(2**31)))
    if diff_seed:
        seed += get_dist_info()[0]
    set_random_seed(seed, deterministic=deterministic)
    return seed


def reseed(seed: int, epoch: int) -> None:
    """Seeds python, numpy and torch for one epoch, whatever happened before it."""
    mixed = (seed + 1_000_003 * epoch) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def describe_environment() -> str:
    """Versions, compilers and devices; one `key: value` a line."""
    import ops_dcnv3

    rows = mmcv.utils.collect_env()
    rows["ops_dcnv3"] = getattr(ops_dcnv3, "__version__", "unknown")
    rows["command"] = " ".join(sys.argv)
    return "\n".join(f"{key}: {value}" for key, value in rows.items())


@contextlib.contextmanager
def naming_unknown_types(what: str, *registries: Any) -> Iterator[None]:
    """Turns mmcv's errors about an unknown `type` or argument into a `ConfigError`.

    Args:
        what: what is being built, for the message.
        registries: mmcv registries whose names are offered as the nearest ones.
    """
    try:
        yield
    except (KeyError, TypeError, AssertionError) as error:
        text = str(error.args[0]) if error.args else ""
        unknown = " is not in the " in text
        if not (unknown or "argument" in text or isinstance(error, AssertionError)):
            raise
        if isinstance(error, AssertionError) and text.rstrip()[-1:] in (":", ""):
            text += f" {failed_line(error)}"
        names = [name for registry in registries for name in registry.module_dict]
        wanted = text.partition(" is not in the ")[0].rpartition(" ")[2].strip("'\"")
        near = difflib.get_close_matches(wanted, names, n=1) if unknown else []
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{what} cannot be built: {text.strip()}{hint}") from error


def failed_line(error: BaseException) -> str:
    """The line of code that raised the first of a chain of errors."""
    while error.__context__ is not None:
        error = error.__context__
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.line} ({Path(last.filename).name}, line {last.lineno})"


@contextlib.contextmanager
def reporting_errors(log: logging.Logger) -> Iterator[None]:
    """Lets errors through as one sentence each; where they came from goes to the log file.

    Errors of a data loader's worker lose the traceback that torch puts into their text.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        record = log.makeRecord(
            log.name, logging.ERROR, __file__, 0, "the run ends here", (), sys.exc_info()
        )
        for handler in log.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)
        if "Original Traceback" not in str(error):
            raise
        last = str(error).strip().splitlines()[-1]
        raise ConfigError(last.partition(": ")[2] or last) from error


def set_amp(cfg: Config, amp: str | None, device: str) -> None:
    """Puts --amp into `cfg.optimizer_config`.

    Raises:
        ConfigError: it contradicts the config or cannot run on the device.
    """
    from .amp import amp_optimizer_config

    if amp is None:
        return
    if cfg.get("fp16") is not None:
        raise ConfigError("--amp and the config's fp16 are two ways to the same; use one")
    cfg.optimizer_config = ConfigDict(amp_optimizer_config(cfg.optimizer_config, amp, device))
