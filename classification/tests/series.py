"""Runs training programs one after the other in the same processes: they start only once.

``torchrun series.py FILE``, where FILE holds a JSON list of ``[program, argument, ...]``. The
process group is kept from one to the next, as DeepSpeed remembers it. The first that fails ends the
series.
"""

import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import torch


def shard_all_weights() -> None:
    """Stage 3 keeps small weights whole, and 10^9 numbers gathered: all of the tests' models."""
    import backend_deepspeed

    make = backend_deepspeed.deepspeed_config

    def changed(*args: object, **options: object) -> dict:
        settings = make(*args, **options)
        names = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance")
        settings["zero_optimization"] |= {f"stage3_{name}": 0 for name in names}
        return settings

    backend_deepspeed.deepspeed_config = changed


def run(program: str, arguments: list[str]) -> int:
    code = importlib.import_module(program.removesuffix(".py")).main(arguments)
    if "accelerate" in sys.modules:
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)
    return code


def keep_group() -> None:
    """The first program's process group is that of all."""
    start = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda *args, **settings: (
        None if torch.distributed.is_initialized() else start(*args, **settings)
    )
    torch.distributed.destroy_process_group = lambda *args: None


def main() -> int:
    torch.set_num_threads(1)
    shard_all_weights()
    leave = torch.distributed.destroy_process_group
    keep_group()
    for program, *arguments in json.loads(Path(sys.argv[1]).read_text()):
        code = run(program, arguments)
        if code:
            print(f"{program} {' '.join(arguments)} gave {code}", file=sys.stderr)
            return code
    leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
