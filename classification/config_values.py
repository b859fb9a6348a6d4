"""Values of the configuration: reading them as literals, their types, the nearest known name."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from typing import Any

from config_defaults import DEFAULTS, NONE_TYPES


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what was wrong and what to do."""


def nearest(name: str, known: Sequence[str]) -> str:
    """', did you mean X?' for the known name nearest to ``name``, else the empty string."""
    lower = {k.lower(): k for k in known}
    leaf = name.lower().rsplit(".", 1)[-1]
    same_leaf = [k for k in lower if k.rsplit(".", 1)[-1] == leaf]
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    found = close or same_leaf
    if same_leaf and "." not in name:  # the section was left out
        found = same_leaf
    return f", did you mean {lower[found[0]]!r}?" if found else ""


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, name + "."))
        else:
            flat[name] = value
    return flat


FLAT_DEFAULTS = flatten(DEFAULTS)
SECTIONS = {key.rsplit(".", n)[0] for key in FLAT_DEFAULTS for n in range(1, key.count(".") + 1)}


def _decode(value: Any) -> Any:
    """Read a string as a Python literal where it is one ('1e-5', 'None', '[1,2]'), as yacs does."""
    if isinstance(value, str):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value


_NAMES = {str: "text", bool: "true or false", int: "an integer", float: "a number", list: "a list"}


def coerce(key: str, raw: Any, where: str) -> Any:
    """Bring ``raw`` to the type of the key's default.

    Args:
        key: dotted key that exists in the defaults.
        raw: value as read from YAML or from the command line.
        where: source, for the error message.

    Raises:
        ConfigError: the value has another type.
    """
    default = FLAT_DEFAULTS[key]
    value = _decode(raw)
    wanted = NONE_TYPES.get(key) if default is None else type(default)
    if value is None:
        if default is None or key in ("TRAIN.CLIP_GRAD",):
            return None
        if wanted is str:
            return "none" if key in ("AUG.AUTO_AUGMENT", "AMP_TYPE") else ""
    elif wanted is str:
        return raw if isinstance(raw, str) else str(value)
    elif wanted is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    elif wanted is bool:
        pass
    elif wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif wanted is list and isinstance(value, (list, tuple)):
        return list(value)
    elif wanted is list and key == "BASE" and isinstance(value, str):
        return [value]
    elif isinstance(value, wanted) and not isinstance(value, bool):
        return value
    elif isinstance(value, float) and wanted is int and value.is_integer():
        return int(value)
    raise ConfigError(f"{where}: {key} needs {_NAMES[wanted]}, got {raw!r}")
