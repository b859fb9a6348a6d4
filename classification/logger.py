"""What a run tells: console, ``log_rank{r}.txt``, ``log.jsonl`` and TensorBoard scalars."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

logger = logging.getLogger(__name__)

_COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[31m"}
_RESET = "\033[0m"
_FORMAT = "[%(asctime)s {name}] (%(filename)s %(lineno)d): %(levelname)s %(message)s"
FILE_ONLY = {"file_only": True}
EVERY_RANK = {"every_rank": True}  # shown on the console by all ranks, not by rank 0 alone


class _ConsoleHandler(logging.Handler):
    """Writes to a stream through tqdm, so that a progress bar stays in one piece.

    Of ranks other than 0 it shows errors and what is marked with EVERY_RANK.
    """

    def __init__(self, stream: TextIO, colour: bool, rank: int) -> None:
        super().__init__(logging.INFO)
        self.stream = stream
        self.colour = colour
        self.rank = rank

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        of_all = record.levelno >= logging.ERROR or getattr(record, "every_rank", False)
        if self.rank != 0 and not of_all:
            return
        try:
            text = self.format(record)
            if self.colour and record.levelno in _COLOURS:
                text = f"{_COLOURS[record.levelno]}{text}{_RESET}"
            tqdm.write(text, file=self.stream)
            self.stream.flush()
        except (OSError, ValueError):
            self.handleError(record)


def setup_logging(output: str | Path | None, name: str, rank: int = 0) -> logging.Logger:
    """Send the log records of the program to the console (all of rank 0's, and the errors of the
    other ranks) and to a file (each rank).

    Args:
        output: folder for ``log_rank{rank}.txt``, which is appended to; None for no file.
        name: shown in each line, the stem of the configuration file.
        rank: rank of this process.

    Returns:
        The root logger. Handlers of an earlier call are closed and replaced.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    close_logging()
    root = logging.getLogger()
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    handlers: list[logging.Handler] = [_ConsoleHandler(sys.stdout, colour, rank)]
    if output is not None:
        try:
            Path(output).mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(Path(output) / f"log_rank{rank}.txt", mode="a"))
        except OSError as error:
            raise OSError(
                f"the output folder {output} cannot be written ({error.strerror}): choose another "
                "with --output"
            ) from error
    name = name.replace("%", "%%") + (f" rank {rank}" if rank else "")
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT.format(name=name),
                                               datefmt="%Y-%m-%d %H:%M:%S"))  # fmt: skip
        handler.level_before = root.level
        root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for noisy in ("PIL", "matplotlib", "tensorboard", "urllib3", "h5py", "torch", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    return root


def close_logging() -> None:
    """Undo :func:`setup_logging`: close its handlers, restore the level and Python's warnings."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if hasattr(h, "level_before")]:
        root.removeHandler(handler)
        root.setLevel(handler.level_before)
        handler.close()
    logging.captureWarnings(False)


class Meter:
    """Latest value, mean over all values, and mean and variance over a window."""

    def __init__(self, window: int = 300) -> None:
        self.value = 0.0
        self.total = 0.0
        self.count = 0
        self.recent: deque[float] = deque(maxlen=window)

    def update(self, value: float, count: int = 1) -> None:
        """Add ``value``, standing for ``count`` samples."""
        self.value = value
        self.total += value * count
        self.count += count
        self.recent.append(value)

    @property
    def average(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def recent_average(self) -> float:
        return sum(self.recent) / len(self.recent) if self.recent else 0.0

    @property
    def recent_variance(self) -> float:
        mean = self.recent_average
        return sum((v - mean) ** 2 for v in self.recent) / len(self.recent) if self.recent else 0.0


class JsonLines:
    """Appends one JSON object per line, flushed at once (rank 0 only)."""

    def __init__(self, path: Path | None) -> None:
        self.file = path.open("a", encoding="utf-8") if path is not None else None

    def write(self, record: dict[str, Any]) -> None:
        """Write one object; NaN and infinity become null."""
        if self.file is not None:
            clean = {
                k: None if isinstance(v, float) and not _finite(v) else v for k, v in record.items()
            }
            self.file.write(json.dumps(clean) + "\n")
            self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def open_tensorboard(folder: Path, first_step: int) -> Any | None:
    """A TensorBoard writer, or None with a one-line notice when tensorboard is not installed.

    Args:
        folder: where the event files go.
        first_step: steps from here on in earlier event files are hidden (a resumed run).
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info(
            "tensorboard is not installed, no scalars are written (pip install tensorboard)"
        )
        return None
    return SummaryWriter(str(folder), purge_step=first_step)


class RunLog:
    """Numbers of one run: ``log.jsonl`` and ``tensorboard/`` in the output folder, on rank 0.

    Args:
        output: the folder, or None to record nothing.
        first_step: see :func:`open_tensorboard`.
        rank: rank of this process.
        board: takes the scalars instead of TensorBoard: ``add_scalar``, ``flush``, ``close``.
    """

    def __init__(
        self,
        output: str | Path | None,
        first_step: int = 0,
        rank: int = 0,
        board: Any | None = None,
    ) -> None:
        here = output is not None and rank == 0
        self.json = JsonLines(Path(output) / "log.jsonl" if here else None)
        self.board = board if here else None
        if here and board is None:
            self.board = open_tensorboard(Path(output) / "tensorboard", first_step)

    def train(self, step: int, record: dict[str, Any]) -> None:
        """One training iteration; ``step`` counts optimizer updates over the whole run."""
        self.json.write({"kind": "train", "step": step, **record})
        if self.board is not None:
            for key in ("loss", "lr", "grad_norm", "images_per_s"):
                if record.get(key) is not None:
                    self.board.add_scalar(f"train/{key}", record[key], step)

    def evaluation(self, step: int, epoch: int, record: dict[str, Any], ema: bool = False) -> None:
        """One evaluation of the model, or of its moving average."""
        self.json.write({"kind": "eval", "step": step, "epoch": epoch, "ema": ema, **record})
        if self.board is not None:
            for key in ("loss", "acc1", "acc5"):
                self.board.add_scalar(f"{'val_ema' if ema else 'val'}/{key}", record[key], step)
            self.board.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self.json.close()
        if self.board is not None:
            self.board.close()


class Progress:
    """A progress bar on a terminal, else a log line every ``print_freq`` iterations (rank 0).

    The log file gets the lines in both cases.
    """

    def __init__(self, total: int, title: str, print_freq: int, rank: int = 0) -> None:
        self.total = total
        self.print_freq = max(1, print_freq)
        self.start = time.perf_counter()
        self.last = self.start
        on_terminal = rank == 0 and sys.stdout.isatty()
        self.bar = None
        if on_terminal:
            columns, rows = shutil.get_terminal_size((100, 24))  # some terminals say 0 x 0
            self.bar = tqdm(
                total=total, desc=title, file=sys.stdout, leave=False, ncols=columns - 1, nrows=rows
            )
        if self.bar is not None and self.bar.disable:  # TQDM_DISABLE is set: lines instead
            self.bar = None

    def due(self, index: int) -> bool:
        """Whether iteration ``index`` (from 0) is one to report; the last one always is."""
        return index % self.print_freq == 0 or index == self.total - 1

    def update(self, index: int, line: str, short: str) -> None:
        """Advance to iteration ``index``; write ``line`` when due, show ``short`` in the bar."""
        if self.bar is not None:
            self.bar.update(1)
            if short:
                self.bar.set_postfix_str(short, refresh=False)
        if line and self.due(index):
            logger.info(line, extra=FILE_ONLY if self.bar is not None else {}, stacklevel=2)

    def eta(self, index: int) -> float:
        """Seconds left, from the mean duration so far."""
        done = index + 1
        return (time.perf_counter() - self.start) / done * (self.total - done)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def format_seconds(seconds: float) -> str:
    """``H:MM:SS``, with days in front when there are any."""
    minutes, secs = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hours}:{minutes:02d}:{secs:02d}"


def memory_mb(device: torch.device) -> float:
    """Peak GPU memory of this process in MB; 0 on CPU."""
    if device.type != "cuda":
        return 0.0
    return torch.cuda.max_memory_allocated(device) / 2**20
