"""The command line of this folder's programs: `models.cli`, which also reports failed set-ups."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from distributed import DistributedSetupError
from models import cli
from models.cli import ArgumentParser

__all__ = ["ArgumentParser", "run_program"]


def run_program(
    run: Callable[[argparse.Namespace], int],
    args: argparse.Namespace,
    *errors: type[Exception],
) -> int:
    """As :func:`models.cli.run_program`; a failed distributed set-up is such an error too."""
    return cli.run_program(run, args, DistributedSetupError, *errors)
