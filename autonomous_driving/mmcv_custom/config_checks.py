"""Configs and the options that change them: what is wrong with them, data in another folder."""

from __future__ import annotations

import argparse
import contextlib
import traceback
from collections.abc import Sequence
from typing import Any

from mmcv import Config, DictAction

COUNTS = {  # settings that mmcv and torch take for granted, with their least value
    "data.samples_per_gpu": 1,
    "data.workers_per_gpu": 0,
    "runner.max_epochs": 1,
    "runner.max_iters": 1,
}


class KeyValues(DictAction):
    """mmcv's KEY=VALUE options; a malformed one ends the program with 2 and is named.

    mmcv takes all spaces out of a value; here a text that is no list (a path) keeps them.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        flag = option_string or self.option_strings[0]
        for value in values:
            if not value.partition("=")[0] or "=" not in value:
                parser.error(f"{flag} takes KEY=VALUE without spaces, got {value!r}")
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:
            parser.error(f"{flag} {' '.join(values)}: {error}")
        except RecursionError:  # mmcv's parser of what has commas inside brackets only
            parser.error(
                f"{flag} {' '.join(values)}: a value is a number, a word or a list like [1,2], no "
                "dictionary or call; give its keys one by one, as in optimizer.type=SGD "
                "optimizer.lr=0.01"
            )

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        text = val.strip("'\" ")
        if " " in text and not set(",[(") & set(text):
            return text
        return DictAction._parse_iterable(val)


def config_fault(cfg: Config, parts: Sequence[str]) -> str | None:
    """What keeps a config from being one of a whole run, or None.

    Args:
        cfg: the config.
        parts: the dictionaries that it must have, for example 'model' and 'data'.
    """
    lost = [name for name in parts if not isinstance(cfg.get(name), dict)]
    if lost:
        return (
            f"it has no {' and no '.join(lost)}; a whole config is needed, not one of the parts in "
            "configs/_base_ or a file of another kind"
        )
    for key, least in COUNTS.items():
        table, _, name = key.partition(".")
        value = (cfg.get(table) or {}).get(name, least)
        if value is not None and (type(value) is not int or value < least):
            return f"{key} must be a whole number from {least} on, it is {value!r}"
    lr = (cfg.get("optimizer") or {}).get("lr", 0.0)
    if isinstance(lr, bool) or not isinstance(lr, (int, float)):
        return f"optimizer.lr must be a number, it is {lr!r}"
    return None


def move_data(cfg: Config, folder: str) -> None:
    """Lets the paths below `cfg.data_root` in `cfg.data` lie below `folder`.

    The files in configs/_base_ join `data_root` with the names, so that setting it later, on the
    command line, would come too late.
    """
    old = cfg.get("data_root")
    if not isinstance(old, str) or not old.strip("/") or not isinstance(cfg.get("data"), dict):
        return
    new, start = folder.rstrip("/"), old.rstrip("/").removeprefix("./")

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                value[key] = moved(value[key])
        elif isinstance(value, (list, tuple)):
            return type(value)(map(moved, value))
        elif isinstance(value, str):
            path = value.removeprefix("./")
            if path == start or path.startswith(f"{start}/"):
                return new + path[len(start) :]
        return value

    moved(cfg.data)


def close_copy(error: BaseException) -> None:
    """Closes mmcv's copy of a config that could not be read.

    Its folder is gone when Python closes it, which prints a traceback below the message.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if (copy := frame.f_locals.get("temp_config_file")) is not None:
            with contextlib.suppress(OSError):
                copy.close()
