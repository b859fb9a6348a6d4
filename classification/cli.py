"""Command-line parsing shared by the programs of this folder."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that names the nearest option for an unknown one."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            known = [option for action in self._actions for option in action.option_strings]
            name = extra[0].split("=")[0]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f", did you mean {near[0]}?" if near else f" (see {self.prog} -h)"
            self.error(f"unknown argument {extra[0]!r}{hint}")
        return parsed
