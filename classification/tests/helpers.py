"""What several test files use: a tiny configuration, tiny images, child processes, log reading."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSIFICATION = Path(__file__).resolve().parents[1]
NANO = """
DATA:
  DATASET: folder
  IMG_SIZE: 32
  BATCH_SIZE: 8
  NUM_WORKERS: 0
AUG:
  MIXUP: 0.0
  CUTMIX: 0.0
  AUTO_AUGMENT: none
  REPROB: 0.0
MODEL:
  TYPE: intern_image
  LABEL_SMOOTHING: 0.0
  INTERN_IMAGE:
    CHANNELS: 16
    DEPTHS: [1, 1, 1, 1]
    GROUPS: [1, 2, 4, 8]
TRAIN:
  EPOCHS: 3
  WARMUP_EPOCHS: 1
  BASE_LR: 0.1
  MIN_LR: 0.001
  EMA:
    ENABLE: True
    DECAY: 0.8
PRINT_FREQ: 1
SAVE_CKPT_NUM: 2
AMP_OPT_LEVEL: O0
DEVICE: cpu
"""
CLASSES = ("blue", "green", "grey", "red")


def make_images(folder: Path, count: int, seed: int) -> None:
    """``count`` 32 x 32 PNG files per class whose colour tells the class."""
    generator = np.random.default_rng(seed)
    for index, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        colour = np.array([[40, 40, 200], [40, 200, 40], [120, 120, 120], [200, 40, 40]][index])
        for number in range(count):
            noise = generator.integers(-40, 40, (32, 32, 3))
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")


def environment(**extra: str) -> dict[str, str]:
    """Environment for a child process: one thread, no network, not a terminal."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def run_program(*args: object, cwd: Path | None = None, timeout: int = 120, **extra: str):
    """Run a program of this folder in a process of its own; returns the finished process."""
    command = [sys.executable, str(CLASSIFICATION / str(args[0])), *map(str, args[1:])]
    return subprocess.run(
        command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=timeout
    )


def torchrun(*args: object, program: Path = CLASSIFICATION / "main.py", processes: int = 2):
    """Run a program (main.py) under torchrun on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
        "--master_addr=127.0.0.1", f"--master_port={port}",
        str(program), *map(str, args),
    ]  # fmt: skip
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=180)


def read_log(output: Path, kind: str = "train", **wanted) -> list[dict]:
    """Records of log.jsonl; of repeated (epoch, iteration) pairs the latest."""
    records = {}
    for line in (output / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == kind and all(record[k] == v for k, v in wanted.items()):
            records[record["epoch"], record.get("iter"), record.get("ema")] = record
    return [records[key] for key in sorted(records, key=str)]
