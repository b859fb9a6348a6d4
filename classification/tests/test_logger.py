"""Log files, JSON lines, TensorBoard scalars, progress with and without a terminal."""

import builtins
import json
import logging
import math
import os

import pytest
from helpers import read_log

import logger as log


@pytest.fixture(autouse=True)
def _restore_logging():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    logging.captureWarnings(False)


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return True


def test_file_per_rank_is_appended_to(tmp_path, capfd):
    for rank in (0, 1, 0):
        log.setup_logging(tmp_path, "nano", rank)
        logging.getLogger("x").info("line of rank %d", rank)
        logging.getLogger("x").debug("detail")
    assert (tmp_path / "log_rank0.txt").read_text().count("line of rank 0") == 2
    assert (tmp_path / "log_rank1.txt").read_text().count("detail") == 1
    printed = capfd.readouterr().out
    assert printed.count("line of rank 0") == 2  # each once: no handler is doubled
    assert "rank 1" not in printed and "detail" not in printed
    assert " nano] (test_logger.py " in printed and "\033[" not in printed


def test_errors_and_marked_lines_of_other_ranks_reach_the_console(tmp_path, capfd):
    log.setup_logging(tmp_path, "nano", 3)
    logging.getLogger("x").warning("the same on every rank")
    logging.getLogger("x").warning("this rank's image", extra=log.EVERY_RANK)
    logging.getLogger("x").error("stopped")
    printed = capfd.readouterr().out
    assert "nano rank 3]" in printed and "stopped" in printed and "this rank's image" in printed
    assert "the same" not in printed and "the same" in (tmp_path / "log_rank3.txt").read_text()


def test_colours_only_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(log.sys, "stdout", terminal)
    log.setup_logging(tmp_path, "nano")
    logging.getLogger("x").warning("careful")
    assert "\033[33m" in terminal.text
    assert "\033[" not in (tmp_path / "log_rank0.txt").read_text()


def test_progress_without_a_terminal(tmp_path, capfd):
    log.setup_logging(tmp_path, "nano")
    progress = log.Progress(8, "epoch", print_freq=3)
    assert progress.bar is None
    for index in range(8):
        progress.update(index, f"iteration {index}", "short")
    progress.close()
    shown = [line.rsplit(" ", 1)[1] for line in capfd.readouterr().out.splitlines()]
    assert shown == ["0", "3", "6", "7"]


@pytest.mark.skipif("TQDM_DISABLE" in os.environ, reason="TQDM_DISABLE is set: no bar")
def test_progress_on_a_terminal_keeps_lines_for_the_file(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(log.sys, "stdout", terminal)
    log.setup_logging(tmp_path, "nano")
    progress = log.Progress(4, "epoch 1/3", print_freq=1)
    for index in range(4):
        progress.update(index, f"iteration {index} done", "loss 0.5")
    progress.close()
    assert "epoch 1/3" in terminal.text and "done" not in terminal.text
    assert (tmp_path / "log_rank0.txt").read_text().count("done") == 4
    assert log.Progress(4, "x", 1, rank=1).bar is None


def test_json_lines(tmp_path):
    for _ in range(2):
        run_log = log.RunLog(tmp_path)
        run_log.train(3, {"epoch": 0, "iter": 1, "loss": 0.1, "grad_norm": math.nan})
        run_log.evaluation(4, 0, {"acc1": 50.0, "acc5": 60.0, "loss": 1.0, "images": 2}, ema=True)
        run_log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert lines[0] == {
        "kind": "train", "step": 3, "epoch": 0, "iter": 1, "loss": 0.1, "grad_norm": None,
    }  # fmt: skip
    assert lines[1]["kind"] == "eval" and lines[1]["ema"] is True and lines[1]["acc1"] == 50.0


def test_only_rank_0_writes_numbers(tmp_path):
    run_log = log.RunLog(tmp_path, rank=1)
    run_log.train(0, {"epoch": 0, "iter": 0, "loss": 1.0})
    run_log.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_the_numbers_of_the_log(trained):
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/lr", "train/grad_norm", "val/acc1", "val_ema/acc1"} <= set(
        events.Tags()["scalars"]
    )
    losses = [record["loss"] for record in read_log(trained)]
    scalars = events.Scalars("train/loss")
    assert [scalar.step for scalar in scalars] == list(range(18))
    assert [scalar.value for scalar in scalars] == pytest.approx(losses, rel=1e-6)


def test_without_tensorboard(tmp_path, monkeypatch, caplog):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    caplog.set_level("INFO")
    run_log = log.RunLog(tmp_path)
    run_log.train(0, {"epoch": 0, "iter": 0, "loss": 1.0})
    run_log.close()
    assert caplog.text.count("tensorboard is not installed") == 1
    assert (tmp_path / "log.jsonl").exists() and not (tmp_path / "tensorboard").exists()


def test_meter():
    meter = log.Meter(window=2)
    for value, count in ((1.0, 1), (2.0, 1), (4.0, 2)):
        meter.update(value, count)
    assert meter.value == 4.0 and meter.average == 11 / 4
    assert meter.recent_average == 3.0 and meter.recent_variance == 1.0
    assert log.Meter().average == 0.0


def test_durations():
    assert log.format_seconds(59.9) == "0:00:59"
    assert log.format_seconds(3661) == "1:01:01"
    assert log.format_seconds(90061) == "1d 1:01:01"
