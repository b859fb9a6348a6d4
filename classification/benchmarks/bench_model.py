"""Times InternImage against ConvNeXt, Swin and itself on the grid_sample formulation of DCNv3.

    python classification/benchmarks/bench_model.py [--sizes tiny] [--batch 1 8] [--train]
        [--dtypes float32 bfloat16] [--compile] [--only InternImage] [--threads 1] [--json FILE]

All candidates of one table take turns within one process, and the ratios of the medians are what
counts: absolute figures vary with the machine's load. bfloat16 is autocast over float32 weights.
Offsets are random (about one pixel), as after training; a fresh model samples a regular grid. On a
GPU (`--device cuda`) inference at batch 1 replays a CUDA graph.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timm.layers import Mlp
from torch import Tensor, nn

CLASSIFICATION = Path(__file__).resolve().parent.parent
sys.path += [str(CLASSIFICATION), str(CLASSIFICATION.parent / "ops_dcnv3" / "benchmarks")]

from grid_sample_baseline import grid_sample_dcnv3
from measure import environment, median_times, peak_extra_bytes

from config import get_config
from models import build_model
from ops_dcnv3.functions import Geometry
from ops_dcnv3.modules import DCNv3

SIZES = {
    "tiny": ("t_1k_224", "convnext_tiny", "swin_tiny_patch4_window7_224"),
    "small": ("s_1k_224", "convnext_small", "swin_small_patch4_window7_224"),
    "base": ("b_1k_224", "convnext_base", "swin_base_patch4_window7_224"),
    "large": ("l_22kto1k_384", "convnext_large", "swin_large_patch4_window12_384"),
}
CLASSES = 1000


def grid_sample_layer(layer: DCNv3, x: Tensor) -> Tensor:
    """The layer without a kernel: two matrix products, PyTorch's softmax, `grid_sample`."""
    value = layer.input_proj(x)
    features = layer.dw_conv(x.permute(0, 3, 1, 2))  # (N, H, W, C)
    offset = layer.offset(features).to(value.dtype)  # (N, H, W, G*P*2)
    mask = layer.mask(features).unflatten(-1, (layer.group, -1))  # (N, H, W, G, P)
    mask = mask.softmax(-1).flatten(-2).to(value.dtype)  # (N, H, W, G*P)
    pairs = (layer.kernel_size, layer.stride, layer.pad, layer.dilation)
    geometry = Geometry(
        *(value for number in pairs for value in (number, number)),
        layer.group,
        layer.group_channels,
        layer.offset_scale,
        layer.remove_center,
    )
    return layer.output_proj(grid_sample_dcnv3(value, offset, mask, geometry))


def build_from_config(name: str, size: int) -> nn.Module:
    """A model of one of the config files, with offsets of about one pixel."""
    torch.manual_seed(0)
    options = ["DATA.IMG_SIZE", size, "MODEL.NUM_CLASSES", CLASSES, "TRAIN.USE_CHECKPOINT", False]
    options = [str(option) for option in options]
    path = CLASSIFICATION / "configs" / f"{name}.yaml"
    model = build_model(get_config(argparse.Namespace(cfg=path, opts=options)))
    for name, parameter in model.named_parameters():
        if name.endswith(("dcn.offset.bias", "dcn.mask.bias", "dcn.offset_mask.bias")):
            nn.init.normal_(parameter)
    return model


class SeparateGELU(nn.GELU):
    """A GELU that `apply_mlp` does not move into the matrix product."""


def on_grid_sample(model: nn.Module) -> nn.Module:
    """The model as it is usually written: `grid_sample_layer`, and plain layers around it."""
    for module in model.modules():
        if isinstance(module, DCNv3):
            module.forward = functools.partial(grid_sample_layer, module)
        elif isinstance(module, Mlp):
            module.act = SeparateGELU()
    return model.to(memory_format=torch.contiguous_format)


def build_models(size_name: str, image_size: int | None, device: str) -> dict[str, nn.Module]:
    """The models of a size by the names that the tables use."""
    config, convnext, swin = SIZES[size_name]
    side = side_of(size_name, image_size)
    models = {
        f"InternImage {size_name}": build_from_config(f"internimage_{config}", side),
        f"FlashInternImage {size_name}": build_from_config(f"flash_intern_image_{config}", side),
        "grid_sample": on_grid_sample(build_from_config(f"internimage_{config}", side)),
        convnext: timm.create_model(convnext, num_classes=CLASSES),
        swin.split("_patch")[0]: timm.create_model(swin, num_classes=CLASSES, img_size=side),
    }
    return {name: model.to(device) for name, model in models.items()}


def side_of(size_name: str, image_size: int | None) -> int:
    """Height and width of the images: as asked for, or those of the config."""
    return image_size or (384 if SIZES[size_name][0].endswith("384") else 224)


def inference(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """One forward pass without gradients."""
    model.eval()
    reduced = dtype != torch.float32

    def run() -> None:
        with torch.inference_mode(), torch.autocast(images.device.type, dtype, enabled=reduced):
            model(images)

    if images.device.type != "cuda" or len(images) > 1:
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def training_step(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Forward and backward pass with a cross-entropy loss; the optimizer is left out."""
    model.train()
    labels = torch.randint(CLASSES, (len(images),), device=images.device)
    reduced = dtype != torch.float32

    def run() -> None:
        with torch.autocast(images.device.type, dtype, enabled=reduced):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        model.zero_grad(set_to_none=True)
        loss.backward()

    return run


def bench(options: argparse.Namespace, size_name: str, batch: int, train: bool) -> dict:
    """One table: every model, dtype and mode at one batch size."""
    models = build_models(size_name, options.image_size, options.device)
    if options.only:
        models = {name: models[name] for name in models if name.startswith(tuple(options.only))}
    side = side_of(size_name, options.image_size)
    images = torch.randn(batch, 3, side, side, device=options.device)
    make = training_step if train else inference
    runs: dict[tuple[str, str, str], Callable[[], None]] = {}
    for name, model in models.items():
        for dtype_name in options.dtypes:
            dtype = getattr(torch, dtype_name)
            if name == "grid_sample" and dtype != torch.float32:
                continue  # the yardstick of every row is its float32
            runs[name, dtype_name, "eager"] = make(model, images, dtype)
            if options.compile and name != "grid_sample":
                for mode, dynamic in (("compiled", False), ("compiled, dynamic", True)):
                    if dynamic and not name.startswith("InternImage"):
                        continue
                    compiled = torch.compile(model, dynamic=dynamic)
                    runs[name, dtype_name, mode] = make(compiled, images, dtype)
    times = median_times(runs, options.rounds, options.device, options.threads)
    memory = {key: peak_extra_bytes(run, options.device) for key, run in runs.items()}
    return {
        "size": size_name,
        "pass": "training step" if train else "inference",
        "batch": batch,
        "image size": side,
        "rows": [
            {
                "model": key[0],
                "dtype": key[1],
                "mode": key[2],
                "ms": times[key],
                "images per second": 1e3 * batch / times[key],
                "peak extra MiB": memory[key] / 2**20,
            }
            for key in runs
        ],
    }


def markdown(table: dict) -> str:
    """The table with ratios to the eager runs of the other models in the first dtype."""
    names = list(dict.fromkeys(row["model"] for row in table["rows"]))
    names = [name for name in names if "InternImage" not in name] or names[:1]  # to compare with
    base = {
        row["model"]: row["ms"]
        for row in table["rows"]
        if (row["dtype"], row["mode"]) == (table["rows"][0]["dtype"], "eager")
    }
    lines = [
        f"InternImage {table['size']}, {table['pass']}, batch {table['batch']}, "
        f"{table['image size']} x {table['image size']}",
        "",
        "| model | dtype | mode | images/s | ms | peak extra MiB | "
        + " | ".join(f"x {name}" for name in names)
        + " |",
        "|---" * (6 + len(names)) + "|",
    ]
    for row in table["rows"]:
        ratios = [f"{base[name] / row['ms']:.2f}" for name in names]
        lines.append(
            f"| {row['model']} | {row['dtype']} | {row['mode']} "
            f"| {row['images per second']:.2f} | {row['ms']:.1f} | {row['peak extra MiB']:.0f} | "
            + " | ".join(ratios)
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny"], choices=list(SIZES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--train", action="store_true", help="training steps, not inference")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--image-size", type=int, help="default: that of the config")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models whose names start so")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_model: --device cuda, but PyTorch sees no GPU; leave it out for the CPU")
    torch.set_num_threads(options.threads)
    facts = environment(options.device, options.threads)
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n", flush=True)
    tables = []
    for size_name in options.sizes:
        for batch in options.batch:
            tables.append(bench(options, size_name, batch, options.train))
            print(markdown(tables[-1]), end="\n\n", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps({**facts, "tables": tables}, indent=1))


if __name__ == "__main__":
    main()
