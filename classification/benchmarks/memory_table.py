"""Memory that training needs, per model size: ``python benchmarks/memory_table.py``.

Nothing is computed: the models run on PyTorch's fake tensors, which have shapes and no contents,
and the storages that autograd keeps for the backward pass are added up. ``--check`` compares with
the memory of a real process on the CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from config import load_config_file
from models import build_model

SIZES = {
    "T": "internimage_t_1k_224",
    "S": "internimage_s_1k_224",
    "B": "internimage_b_1k_224",
    "L": "internimage_l_22kto1k_384",
    "XL": "internimage_xl_22kto1k_384",
    "H": "internimage_h_22kto1k_640",
    "G": "internimage_g_22kto1k_512",
}
GIB = 2**30


@dataclass(frozen=True)
class Saved:
    """Bytes that autograd keeps between forward and backward pass.

    Attributes:
        total: all of them, without the weights themselves.
        checkpointed: with activation checkpointing: what is outside the blocks, the blocks' inputs,
            and one block at a time, the largest.
    """

    total: float
    checkpointed: float


def make_fake(model: nn.Module) -> None:
    """Replace the weights of a model on the meta device by fake CPU tensors of the same layout."""
    for module in model.modules():
        for store, wrap in ((module._parameters, nn.Parameter), (module._buffers, lambda t: t)):
            for name, value in store.items():
                if value is not None:
                    new = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
                    store[name] = wrap(new)


def storage(tensor: torch.Tensor) -> tuple[int, int]:
    """Identity and size in bytes of what a tensor lies in."""
    found = tensor.untyped_storage()
    return found._cdata, found.nbytes()


def saved_bytes(model: nn.Module, images: torch.Tensor, dtype: torch.dtype | None) -> Saved:
    """Run a forward pass and the loss; add up what autograd keeps.

    Args:
        images: (N, 3, H, W).
        dtype: of autocast, None for float32.
    """
    weights = {storage(p)[0] for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}
    owner: dict[int, int] = {}
    current = [0]  # index of the running block, 0 outside the blocks
    inputs: dict[int, int] = {}
    handles = []

    def enter(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            current[0] = index
            inputs[index] = args[0].numel() * args[0].element_size()

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        current[0] = 0

    blocks = [block for level in model.levels for block in level.blocks]
    for index, block in enumerate(blocks, start=1):
        handles += [block.register_forward_pre_hook(enter(index))]
        handles += [block.register_forward_hook(leave)]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        key, _ = storage(tensor)
        if key not in weights and key not in kept:
            kept[key], owner[key] = tensor, current[0]
        return tensor

    autocast = torch.autocast(images.device.type, dtype, enabled=dtype is not None)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        target = torch.zeros(len(images), dtype=torch.long)
        loss = nn.functional.cross_entropy(model(images), target)
    for handle in handles:
        handle.remove()
    by_owner = [0] * (len(blocks) + 1)
    for key, tensor in kept.items():
        by_owner[owner[key]] += storage(tensor)[1]
    del loss
    return Saved(sum(by_owner), by_owner[0] + sum(inputs.values()) + max(by_owner[1:]))


def fake_model(name: str) -> tuple[nn.Module, int]:
    """A model on the meta device and its training resolution."""
    # the shares of drop path are read from a tensor, which a meta tensor cannot give
    changes = ["MODEL.DROP_PATH_TYPE", "uniform", "TRAIN.USE_CHECKPOINT", "False"]
    config = load_config_file(HERE / "configs" / f"{name}.yaml", changes)
    with torch.device("meta"):
        return build_model(config).train(), config.DATA.IMG_SIZE


def account(name: str, dtype: torch.dtype | None) -> tuple[int, int, int, Saved, Saved]:
    """Parameters, those of the largest block, resolution, and kept bytes for 1 and 16 images."""
    model, size = fake_model(name)
    parameters = sum(p.numel() for p in model.parameters())
    largest = max(
        sum(p.numel() for p in block.parameters())
        for level in model.levels
        for block in level.blocks
    )
    found = []
    with FakeTensorMode():
        make_fake(model)
        for batch in (1, 16):
            found.append(saved_bytes(model, torch.empty(batch, 3, size, size), dtype))
    return parameters, largest, size, found[0], found[1]


def states(parameters: int, largest: int, world: int = 8) -> dict[str, float]:
    """Bytes of weights, gradients and AdamW's state of one process in bfloat16 training.

    Plain PyTorch and FSDP2 keep float32 weights and gradients; DeepSpeed keeps bfloat16 ones and
    float32 copies of the weights with the optimizer. Stage 3 and FSDP2 also hold the gathered
    bfloat16 weights of two blocks (the running one and the next).
    """
    gathered = 2 * 2 * largest
    return {
        "one process, DDP": 16 * parameters,
        "main.py --use-zero": (8 + 8 / world) * parameters,
        "ZeRO-1": (4 + 12 / world) * parameters,
        "ZeRO-2": (2 + 14 / world) * parameters,
        "ZeRO-3": 16 / world * parameters + gathered,
        "FSDP2": 16 / world * parameters + gathered,
    }


def tables() -> None:
    """Print both tables as Markdown."""
    print("| model | image | M parameters | precision | 1 image | 16 images "
          "| 1, checkpointed | 16, checkpointed |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    sharded = []
    for label, name in SIZES.items():
        for dtype in (None, torch.bfloat16):
            parameters, largest, size, one, many = account(name, dtype)
            numbers = (one.total, many.total, one.checkpointed, many.checkpointed)
            print(
                f"| {label} | {size} | {parameters / 1e6:.0f} | {'bf16' if dtype else 'fp32'} | "
                + " | ".join(f"{number / GIB:.1f}" for number in numbers)
                + " |",
                flush=True,
            )
        sharded.append((label, states(parameters, largest)))
    print("\n| model | " + " | ".join(sharded[0][1]) + " |")
    print("|---" * (len(sharded[0][1]) + 1) + "|")
    for label, row in sharded:
        print(f"| {label} | " + " | ".join(f"{value / GIB:.1f}" for value in row.values()) + " |")


def resident() -> int:
    """Bytes of main memory that this process has."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def check(name: str, batch: int) -> None:
    """Compare the account of a forward pass in float32 with a real one."""
    config = load_config_file(HERE / "configs" / f"{name}.yaml")
    size = config.DATA.IMG_SIZE
    model = build_model(config).train()
    nn.functional.cross_entropy(model(torch.rand(1, 3, size, size)), torch.zeros(1).long())
    images = torch.rand(batch, 3, size, size)
    gc.collect()
    before = resident()
    loss = nn.functional.cross_entropy(model(images), torch.zeros(batch).long())
    measured = resident() - before
    del loss
    fake, _ = fake_model(name)
    with FakeTensorMode():
        make_fake(fake)
        accounted = saved_bytes(fake, torch.empty(batch, 3, size, size), None).total
    print(
        f"{name}, {batch} images of {size} x {size}, float32, after the forward pass: "
        f"{measured / GIB:.2f} GiB measured, {accounted / GIB:.2f} GiB accounted"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", metavar="CONFIG", help="e.g. internimage_t_1k_224")
    parser.add_argument("--batch", type=int, default=4, help="images of --check")
    args = parser.parse_args()
    if args.check:
        check(args.check, args.batch)
    else:
        tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
