"""Command-line parsing and error reports that the programs of every task folder share."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .safe_load import CheckpointError

logger = logging.getLogger(__name__)

USER_ERRORS = (CheckpointError, OSError, ValueError)


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


def run_program(
    run: Callable[[argparse.Namespace], int],
    args: argparse.Namespace,
    *errors: type[Exception],
) -> int:
    """``run(args)`` with its log on stderr; returns the exit code.

    What a user can cause ends the program with one line and exit code 1, Ctrl-C with 130.

    Args:
        errors: such errors of this program, besides `USER_ERRORS`.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        return run(args)
    except (*USER_ERRORS, *errors) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted")
        return 130
