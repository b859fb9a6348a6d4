"""FSDP2, DeepSpeed and Accelerate: the losses of plain training, whole checkpoints, exact resumes.

Everything here runs on CPUs with gloo. What needs a GPU and is not run: nccl, float16 with its loss
scale (DeepSpeed refuses float16 on CPUs without AVX512-FP16).
"""

import json
import math
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from helpers import CLASSIFICATION, environment, read_log, run_program, torchrun

import main
from backend_deepspeed import deepspeed_config
from backend_folder import FolderBackend
from checkpoint import CheckpointError
from config import ConfigError, get_config
from folder_checkpoint import RUN_FILE, FolderWriter, find_folder, resolve_folder
from models.safe_load import load_file

CONFIGS = CLASSIFICATION / "configs" / "accelerate"
SETTINGS = ["TRAIN.EPOCHS", "2", "TRAIN.WARMUP_EPOCHS", "0", "MODEL.DROP_PATH_RATE", "0.0"]
fsdp = pytest.mark.skipif(
    not hasattr(torch.distributed.fsdp, "fully_shard"), reason="FSDP2 needs PyTorch 2.6"
)


def flags(nano_yaml, output, *more) -> list[str]:
    """Two processes, 4 images each, 3 batches per update."""
    return list(map(str, [
        "--cfg", nano_yaml, "--output", output, "--batch-size", 4, "--accumulation-steps", 3, *more,
        "--opts", *SETTINGS,
    ]))  # fmt: skip


def run(program, arguments):
    done = torchrun(*arguments, program=CLASSIFICATION / program)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


def numbers(output, epochs=(0, 1)) -> list[float]:
    """Loss and gradient norm of each iteration, then the evaluations, in order."""
    train = [r for r in read_log(output) if r["epoch"] in epochs]
    evaluations = [r for r in read_log(output, "eval") if r["epoch"] in epochs]
    values = [r[key] or 0.0 for r in train for key in ("loss", "grad_norm", "lr")]
    return values + [r[key] for r in evaluations for key in ("loss", "images")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, nano_yaml) -> Path:
    """Two epochs of main.py with DistributedDataParallel."""
    output = tmp_path_factory.mktemp("ddp")
    run("main.py", flags(nano_yaml, output))
    return output / "nano"


@pytest.fixture(scope="module")
def zero3(tmp_path_factory, nano_yaml) -> Path:
    """Two epochs of main_deepspeed.py with sharded weights."""
    pytest.importorskip("deepspeed")
    output = tmp_path_factory.mktemp("zero3")
    run("main_deepspeed.py", flags(nano_yaml, output, "--zero-stage", 3))
    return output / "nano"


def same_weights(ours, theirs, tolerance=1e-4) -> None:
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key].to(value.dtype), value, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------- FSDP2
@fsdp
def test_fsdp_is_ddp_with_less_memory(plain, nano_yaml, tmp_path, monkeypatch):
    """Losses, the checkpoint as a plain file, and a resume of a plain checkpoint."""
    run("main.py", flags(nano_yaml, tmp_path, "--fsdp", "--use-checkpoint"))
    assert numbers(tmp_path / "nano") == pytest.approx(numbers(plain), rel=2e-3, abs=1e-6)
    theirs, ours = (load_file(f / "ckpt_epoch_1.pth") for f in (plain, tmp_path / "nano"))
    assert set(ours) == set(theirs)
    same_weights(ours["model"], theirs["model"], 1e-3)
    same_weights(ours["model_ema"], theirs["model_ema"], 1e-3)
    groups = [group["name"] for group in ours["optimizer"]["param_groups"]]
    assert groups == [group["name"] for group in theirs["optimizer"]["param_groups"]]
    # FSDP goes on from DDP's first epoch, and plain PyTorch from FSDP's last
    source = str(plain / "ckpt_epoch_0.pth")
    more = ["--resume", source, "--output", str(tmp_path / "b"), "--fsdp"]
    assert main.main(["--cfg", str(nano_yaml), *more, "--opts", *SETTINGS]) == 0
    records = read_log(tmp_path / "b" / "nano", "eval")
    assert [r["epoch"] for r in records if not r["ema"]] == [0, 1]
    for record, expected in zip(records[:2], read_log(plain, "eval")[:2], strict=True):
        assert record["ema"] == expected["ema"]
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    source = tmp_path / "nano" / "ckpt_epoch_1.pth"
    more = ["--resume", str(source), "--output", str(tmp_path / "c")]
    assert main.main(["--cfg", str(nano_yaml), *more, "--opts", *SETTINGS[2:]]) == 0
    records = read_log(tmp_path / "c" / "nano", "eval", ema=False)
    assert [r["epoch"] for r in records] == [1, 2]
    assert records[0]["loss"] == pytest.approx(read_log(plain, "eval", ema=False)[1]["loss"], 1e-3)


@fsdp
def test_fsdp_refuses_what_it_cannot_do(nano_yaml, tmp_path, caplog, monkeypatch):
    base = ["--cfg", str(nano_yaml), "--output", str(tmp_path), "--fsdp"]
    assert main.main([*base, "--compile"]) == 1
    assert main.main([*base, "--amp-dtype", "float16"]) == 1
    assert "cannot be combined" in caplog.text and "bfloat16" in caplog.text
    import backend_fsdp

    monkeypatch.setattr(backend_fsdp, "fully_shard", None)
    assert main.main(base) == 1
    assert "--fsdp needs PyTorch 2.6 or newer, this is" in caplog.text


@fsdp
def test_fsdp_in_one_process_in_bfloat16(nano_yaml, tmp_path):
    base = ["--cfg", str(nano_yaml), "--output", str(tmp_path), "--fsdp"]
    base += ["--amp-dtype", "bfloat16", "--use-zero"]  # which the configs of H and G ask for
    assert main.main([*base, "--opts", "TRAIN.EPOCHS", "1"]) == 0
    assert "FSDP2 in torch.bfloat16" in (tmp_path / "nano" / "log_rank0.txt").read_text()
    weights = load_file(tmp_path / "nano" / "ckpt_epoch_0.pth")["model"]
    assert all(v.dtype in (torch.float32, torch.int64) for v in weights.values())


# --------------------------------------------------------------------------------------- DeepSpeed
def test_zero3_is_ddp(plain, zero3):
    assert numbers(zero3) == pytest.approx(numbers(plain), rel=2e-3, abs=1e-6)
    names = {path.name for path in zero3.iterdir()}
    assert names >= {"epoch0", "epoch1", "best", "best_ema", "latest", "config.json", "log.jsonl"}
    assert (zero3 / "latest").read_text() == "epoch1"
    entries = torch.load(zero3 / "best" / RUN_FILE, weights_only=True)
    assert entries["config"]["MODEL"]["NAME"] == "nano"
    assert entries["max_accuracy"] == max(r["acc1"] for r in read_log(zero3, "eval", ema=False))


def test_zero2_with_offload_is_ddp(plain, nano_yaml, tmp_path):
    """The update happens in main memory, by PyTorch's AdamW."""
    pytest.importorskip("deepspeed")
    more = ["--zero-stage", 2, "--offload-optimizer", "cpu", "--save-ckpt-num", 1]
    run("main_deepspeed.py", flags(nano_yaml, tmp_path, *more))
    assert numbers(tmp_path / "nano") == pytest.approx(numbers(plain), rel=2e-3, abs=1e-6)
    assert not (tmp_path / "nano" / "epoch0").exists()  # SAVE_CKPT_NUM


def test_zero3_goes_on_exactly_after_a_kill(zero3, nano_yaml, tmp_path):
    """The second checkpoint is half written: the first is used, and bitwise the same follows."""
    output = tmp_path / "nano"
    shutil.copytree(zero3 / "epoch0", output / "epoch0")
    shutil.copytree(zero3 / "epoch0", output / ".epoch1.tmp")
    (output / ".epoch1.tmp" / RUN_FILE).unlink()
    (output / "latest").write_text("epoch0")
    run("main_deepspeed.py", flags(nano_yaml, tmp_path, "--zero-stage", 3))
    assert numbers(output, (1,)) == numbers(zero3, (1,))
    assert (output / "latest").read_text() == "epoch1"
    assert not (output / ".epoch1.tmp").exists()
    theirs, ours = (load_file(f / "epoch1" / "model_ema.pth") for f in (zero3, output))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_zero3_offloaded_in_bfloat16_with_layer_decay(plain, nano_yaml, tmp_path):
    pytest.importorskip("deepspeed")
    more = ["--zero-stage", 3, "--offload-optimizer", "cpu", "--offload-param", "cpu"]
    more += ["--amp-dtype", "bfloat16", "--use-checkpoint"]
    arguments = flags(nano_yaml, tmp_path, *more, "--batch-size", 8)
    arguments += ["TRAIN.LR_LAYER_DECAY", "True", "TRAIN.EPOCHS", "1"]
    done = run_program("main_deepspeed.py", *arguments)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    ours, theirs = read_log(tmp_path / "nano"), read_log(plain)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=0.2)
    assert all(math.isfinite(r["loss"]) for r in ours) and ours[-1]["lr"] < theirs[5]["lr"]
    log = (tmp_path / "nano" / "log_rank0.txt").read_text()
    assert "DeepSpeed ZeRO-3 in torch.bfloat16" in log


def test_plain_file_from_a_folder(zero3, nano_yaml, tmp_path):
    """--to-pth; main.py evaluates the file, main_deepspeed.py the folder, with the same result."""
    file = tmp_path / "plain.pth"
    done = run_program("main_deepspeed.py", "--to-pth", zero3, file)
    assert done.returncode == 0, done.stderr[-2000:]
    state = torch.load(file, weights_only=True)
    assert set(state) >= {"model", "model_ema", "epoch", "config", "class_names", "max_accuracy"}
    base = ["--cfg", str(nano_yaml), "--eval"]
    arguments = [*base, "--resume", str(file), "--output", str(tmp_path / "a")]
    assert main.main(arguments) == 0
    arguments = [*base, "--resume", str(zero3 / "best"), "--output", str(tmp_path / "b")]
    done = run_program("main_deepspeed.py", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    trained = {r["ema"]: r for r in read_log(zero3, "eval") if r["epoch"] == 1}
    for ema in (False, True):
        (found,) = read_log(tmp_path / "a" / "nano", "eval", ema=ema)
        assert found["loss"] == pytest.approx(trained[ema]["loss"], rel=1e-5)
        assert found["acc1"] == trained[ema]["acc1"]
    best = load_file(zero3 / "best" / RUN_FILE)
    (found,) = read_log(tmp_path / "b" / "nano", "eval", ema=False)
    assert found["acc1"] == best["max_accuracy"] and found["epoch"] == best["epoch"]


def test_another_number_of_processes_or_a_file_is_refused(nano_config, tmp_path):
    backend = FolderBackend(nano_config, Namespace(world_size=1))
    backend.stage = 3
    torch.save({"world_size": 2, "zero_stage": 3}, tmp_path / RUN_FILE)
    with pytest.raises(CheckpointError, match="processes 2, this run has 1.*--to-pth"):
        backend.resume(str(tmp_path))
    with pytest.raises(CheckpointError, match="single file.*--pretrained"):
        backend.resume(str(tmp_path / RUN_FILE))


def test_deepspeed_configuration(nano_yaml):
    config = get_config(Namespace(cfg=str(nano_yaml), opts=["TRAIN.ACCUMULATION_STEPS", "4"]))
    made = deepspeed_config(config, stage=2, dtype=torch.float16, offload_optimizer=True)
    assert made["gradient_accumulation_steps"] == 4 and made["gradient_clipping"] == 5.0
    assert made["fp16"] == {"enabled": True, "loss_scale": 0.0}  # 0 is dynamic
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    made = deepspeed_config(config, stage=1, dtype=torch.float16, static_loss_scale=True)
    assert made["fp16"]["loss_scale"] == 1.0 and "bf16" not in made
    with pytest.raises(ConfigError, match="--offload-param cpu needs --zero-stage 3"):
        deepspeed_config(config, stage=2, dtype=None, offload_param=True)


# -------------------------------------------------------------------------------------- Accelerate
def accelerate(config: Path, arguments, tmp_path):
    """``accelerate launch`` with a shipped DeepSpeed configuration, for two CPU processes."""
    settings = yaml.safe_load(config.read_text())
    settings |= {"num_processes": 2, "use_cpu": True}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(settings))
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file",
        tmp_path / "launch.yaml", "--main_process_port", 0, "main_accelerate.py", *arguments,
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), env=environment(), cwd=CLASSIFICATION, capture_output=True,
        text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


def test_accelerate_without_deepspeed_is_ddp(plain, nano_yaml, tmp_path):
    """On CPUs ``accelerate launch`` starts one process without DeepSpeed, so torchrun does it."""
    pytest.importorskip("accelerate")
    run("main_accelerate.py", flags(nano_yaml, tmp_path))
    assert numbers(tmp_path / "nano_deepspeed") == pytest.approx(numbers(plain), rel=1e-5)


def test_accelerate_with_deepspeed_is_ddp_and_goes_on_exactly(plain, nano_yaml, tmp_path):
    pytest.importorskip("accelerate")
    pytest.importorskip("deepspeed")
    config = CONFIGS / "dist_8gpus_zero1.yaml"
    done = accelerate(config, flags(nano_yaml, tmp_path, "--amp-dtype", "none"), tmp_path)
    output = tmp_path / "nano_deepspeed"
    assert numbers(output) == pytest.approx(numbers(plain), rel=2e-3, abs=1e-6)
    assert (output / "last").resolve() == output / "epoch1" and (output / "best").is_dir()
    assert done.stdout.count("Train: [0/2][5/6]") == 1  # the main process alone reports
    again = tmp_path / "again" / "nano_deepspeed"
    shutil.copytree(output / "epoch0", again / "epoch0")
    (again / "latest").write_text("epoch0")
    arguments = flags(nano_yaml, tmp_path / "again", "--amp-dtype", "none")
    accelerate(config, arguments, tmp_path)
    assert numbers(again, (1,)) == numbers(output, (1,))


def test_accelerate_pretrained_frequency_and_wandb(plain, nano_yaml, tmp_path):
    """One process: --pretrained is used in training, SAVE_FREQ kept, --logger obeyed."""
    pytest.importorskip("accelerate")
    (tmp_path / "wandb.py").write_text(
        "import json\n"
        "class Run:\n"
        "    def log(self, values, step):\n"
        f"        file = open({str(tmp_path / 'logged')!r}, 'a')\n"
        "        file.write(json.dumps([step, values]) + '\\n')\n"
        "    def finish(self): pass\n"
        "def init(**settings): return Run()\n"
    )
    source = plain / "ckpt_epoch_1.pth"
    arguments = ["main_accelerate.py", "--cfg", nano_yaml, "--output", tmp_path]
    arguments += ["--pretrained", source, "--logger", "wandb", "--save-ckpt-num", "3", "--opts"]
    arguments += ["TRAIN.EPOCHS", "3", "SAVE_FREQ", "2", "TRAIN.BASE_LR", "0.0"]
    arguments += ["TRAIN.MIN_LR", "0.0", "TRAIN.WARMUP_LR", "0.0"]
    done = run_program(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    output = tmp_path / "nano_deepspeed"
    assert {p.name for p in output.glob("epoch*")} == {"epoch0", "epoch2"}
    first = read_log(output, "eval", ema=False)[0]
    assert first["epoch"] == -1 and first["acc1"] == read_log(plain, "eval", ema=False)[1]["acc1"]
    logged = [json.loads(line) for line in (tmp_path / "logged").read_text().splitlines()]
    assert {key for _, values in logged for key in values} >= {"train/loss", "val/acc1"}
    assert not (output / "tensorboard").exists()


def test_wandb_that_is_not_installed(nano_config, monkeypatch):
    from backend_accelerate import check_config

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_config(nano_config, Namespace(logger="wandb"))


def test_launch_configurations_are_whole():
    """The names of the original implementation; every JSON that a YAML names is there."""
    names = {path.stem.removeprefix("dist_8gpus_") for path in CONFIGS.glob("*.yaml")}
    assert names == {
        "ddp_fp16", "zero1", "zero1_wo_loss_scale", "zero3", "zero3_wo_loss_scale",
        "zero3_offload", "zero3_offload_wo_loss_scale",
    }  # fmt: skip
    for path in CONFIGS.glob("*.yaml"):
        settings = yaml.safe_load(path.read_text())
        assert settings["num_processes"] == 8
        if path.stem.endswith("ddp_fp16"):
            assert settings["mixed_precision"] == "fp16"
            continue
        file = CLASSIFICATION / settings["deepspeed_config"]["deepspeed_config_file"]
        made = json.loads(file.read_text())
        assert made["gradient_accumulation_steps"] == "auto"
        assert made["zero_optimization"]["stage"] == (1 if "zero1" in path.stem else 3)
        assert ("offload_param" in made["zero_optimization"]) == ("offload" in path.stem)
        assert made["fp16"]["loss_scale"] == (1.0 if "wo_loss_scale" in path.stem else 0)


# ------------------------------------------------------------------------------ checkpoint folders
def write_to(folder, text="x"):
    (folder / RUN_FILE).write_text(text)


def test_folders_are_whole_or_absent(tmp_path):
    writer = FolderWriter(tmp_path, save_freq=2, keep=1, link="last")
    assert find_folder(tmp_path) is None
    writer.save_epoch(0, write_to)

    def fail(folder):
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(CheckpointError, match=r"disk full.*Earlier checkpoints"):
        writer.save_epoch(2, fail)
    assert {p.name for p in tmp_path.iterdir()} == {"epoch0", "latest", "last"}
    assert find_folder(tmp_path) == tmp_path / "epoch0" == (tmp_path / "last").resolve()
    writer.save_epoch(2, write_to)
    assert {p.name for p in tmp_path.iterdir()} == {"epoch2", "latest", "last"}
    for text in "ab":
        writer.save("best", lambda folder, text=text: write_to(folder, text))
    assert (tmp_path / "best" / RUN_FILE).read_text() == "b"


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    (tmp_path / ".best.old.tmp").mkdir()
    write_to(tmp_path / ".best.old.tmp")
    FolderWriter(tmp_path, 1, 1)
    assert (tmp_path / "best" / RUN_FILE).exists() and not (tmp_path / ".best.old.tmp").exists()
    (tmp_path / "latest").write_text("epoch7")  # whose folder somebody removed
    for number in (9, 10):
        (tmp_path / f"epoch{number}").mkdir()
        write_to(tmp_path / f"epoch{number}")
    assert resolve_folder(tmp_path) == tmp_path / "epoch10"
    with pytest.raises(CheckpointError, match="is not a checkpoint folder"):
        resolve_folder(tmp_path / "nothing")
