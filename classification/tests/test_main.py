"""main.py as its users run it: train, evaluate, resume, stop, and how it starts."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from helpers import CLASSIFICATION, environment, read_log, run_program, torchrun

import engine
import evaluation
import main
import training
from models.safe_load import load_file

# one epoch without warm-up and without random parts other than the order
QUIET = ["TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.EMA.ENABLE", "False",
         "MODEL.DROP_PATH_RATE", "0", "AUG.COLOR_JITTER", "0"]  # fmt: skip


def run(nano_yaml, output, *flags) -> int:
    return main.main(["--cfg", str(nano_yaml), "--output", str(output), *map(str, flags)])


def log_text(output) -> str:
    return (output / "nano" / "log_rank0.txt").read_text()


# ------------------------------------------------------------------------- a whole training run
def test_output_folder(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.json", "log_rank0.txt", "log.jsonl", "tensorboard", "ckpt_epoch_1.pth",
        "ckpt_epoch_2.pth", "ckpt_epoch_best.pth", "ckpt_epoch_ema_best.pth",
    }  # fmt: skip
    assert "ckpt_epoch_0.pth" not in names  # SAVE_CKPT_NUM 2
    assert any(path.name.startswith("events") for path in (trained / "tensorboard").iterdir())
    text = (trained / "config.json").read_text()
    assert json.loads(text)["MODEL"]["NUM_CLASSES"] == 4
    assert yaml.safe_load(text).keys() == json.loads(text).keys()


def test_learns_and_records(trained):
    losses = [record["loss"] for record in read_log(trained)]
    assert len(losses) == 3 * 6 and losses[-1] < 0.7 * losses[0]
    model = read_log(trained, "eval", ema=False)
    ema = read_log(trained, "eval", ema=True)
    assert len(model) == len(ema) == 3 and model[-1]["images"] == 22 and model[-1]["acc1"] > 60
    best = load_file(trained / "ckpt_epoch_best.pth")
    assert best["max_accuracy"] == max(r["acc1"] for r in model)
    assert model[best["epoch"]]["acc1"] == best["max_accuracy"]  # not the value before it
    ema_best = load_file(trained / "ckpt_epoch_ema_best.pth")
    assert ema_best["max_accuracy_ema"] == max(r["acc1"] for r in ema)


def test_log_lines_keep_their_fields(trained):
    text = (trained / "log_rank0.txt").read_text()
    line = next(line for line in text.splitlines() if "Train: [1/3][2/6]" in line)
    for part in (
        "\teta ",
        "\tlr ",
        "\ttime ",
        "\tmodel_time ",
        "\tloss ",
        "\tgrad_norm ",
        "\tmem ",
    ):
        assert part in line
    assert "Test: [0/3]\tTime " in text and " * Acc@1 " in text
    assert "Accuracy of the network on the 22 test images: " in text
    assert "Accuracy of the ema network on the 22 test images: " in text
    assert "Max accuracy: " in text and "Max ema accuracy: " in text


def test_evaluation_gives_the_training_runs_numbers(trained, nano_yaml, tmp_path):
    best = load_file(trained / "ckpt_epoch_best.pth")
    flags = ["--amp-dtype", "bfloat16"]  # of no effect: evaluation is in float32
    source = trained / "ckpt_epoch_best.pth"
    assert run(nano_yaml, tmp_path, "--eval", "--resume", source, *flags) == 0
    assert "autocast" not in log_text(tmp_path)
    (model,) = read_log(tmp_path / "nano", "eval", ema=False)
    (ema,) = read_log(tmp_path / "nano", "eval", ema=True)
    assert model["acc1"] == best["max_accuracy"] and model["epoch"] == best["epoch"]
    recorded = read_log(trained, "eval", ema=True)[best["epoch"]]
    assert (ema["acc1"], ema["loss"]) == (recorded["acc1"], recorded["loss"])
    assert not list((tmp_path / "nano").glob("*.pth"))


def test_eval_of_typed_weights_passes_over_the_runs_own_checkpoints(trained, nano_yaml, tmp_path):
    (tmp_path / "nano").mkdir()
    shutil.copy(trained / "ckpt_epoch_2.pth", tmp_path / "nano")
    source = trained / "ckpt_epoch_1.pth"
    assert run(nano_yaml, tmp_path, "--eval", "--pretrained", source) == 0
    assert run(nano_yaml, tmp_path, "--eval") == 0
    records = read_log(tmp_path / "nano", "eval", ema=False)
    assert [record["epoch"] for record in records] == [1, 2]


def test_config_json_can_be_used_as_cfg(trained, tmp_path):
    flags = ["--output", str(tmp_path), "--resume", str(trained / "ckpt_epoch_best.pth")]
    assert main.main(["--cfg", str(trained / "config.json"), "--eval", *flags]) == 0


def test_eval_without_anything_to_evaluate(nano_yaml, tmp_path, capfd):
    assert run(nano_yaml, tmp_path, "--eval") == 1
    assert "nothing to evaluate" in capfd.readouterr().out


def test_throughput(nano_yaml, tmp_path):
    assert run(nano_yaml, tmp_path, "--throughput") == 0
    assert "batch_size 8 throughput " in log_text(tmp_path)


def test_pretrained(trained, nano_yaml, tmp_path):
    source = trained / "ckpt_epoch_best.pth"
    flags = ["--opts", "TRAIN.EPOCHS", "1", "TRAIN.BASE_LR", "0", "TRAIN.MIN_LR", "0"]
    flags += ["TRAIN.WARMUP_LR", "0"]
    assert run(nano_yaml, tmp_path, "--pretrained", source, *flags) == 0
    records = read_log(tmp_path / "nano", "eval", ema=False)
    assert records[0]["acc1"] == load_file(source)["max_accuracy"]  # validated right after loading
    made = load_file(tmp_path / "nano" / "ckpt_epoch_0.pth")
    key = "levels.0.blocks.0.mlp.fc1.weight"  # a learning rate of 0: model and average stay
    assert torch.equal(made["model"][key], load_file(source)["model"][key])
    assert torch.equal(made["model_ema"][key], load_file(source)["model"][key])


# ------------------------------------------------------------------------------------- resuming
def start(nano_yaml, output) -> subprocess.Popen:
    command = [sys.executable, str(CLASSIFICATION / "main.py"), "--cfg", str(nano_yaml)]
    return subprocess.Popen(
        [*command, "--output", str(output)], env=environment(), stdout=subprocess.DEVNULL
    )


def test_killed_run_goes_on_as_if_nothing_happened(trained, nano_yaml, tmp_path):
    output = tmp_path / "nano"
    process = start(nano_yaml, tmp_path)
    deadline = time.monotonic() + 100
    while not (output / "ckpt_epoch_0.pth").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    while len(read_log(output)) < 8:  # two iterations into the second epoch
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9
    assert len(read_log(output)) < 18
    assert start(nano_yaml, tmp_path).wait(100) == 0
    assert "auto resuming from" in (output / "log_rank0.txt").read_text()
    for ours, theirs in zip(read_log(output), read_log(trained), strict=True):
        assert {k: ours[k] for k in ("epoch", "iter", "step", "lr", "loss", "grad_norm")} == {
            k: theirs[k] for k in ("epoch", "iter", "step", "lr", "loss", "grad_norm")
        }
    ours, theirs = (load_file(f / "ckpt_epoch_2.pth") for f in (output, trained))
    assert ours["max_accuracy"] == theirs["max_accuracy"]
    assert ours["max_accuracy_ema"] == theirs["max_accuracy_ema"]
    for part in ("model", "model_ema"):
        for key, value in theirs[part].items():
            assert torch.equal(ours[part][key], value), (part, key)
    for index, state in theirs["optimizer"]["state"].items():
        assert all(torch.equal(ours["optimizer"]["state"][index][k], v) for k, v in state.items())


def test_truncated_newest_checkpoint_is_passed_over(trained, nano_yaml, tmp_path):
    output = tmp_path / "nano"
    output.mkdir()
    shutil.copy(trained / "ckpt_epoch_1.pth", output)
    data = (trained / "ckpt_epoch_2.pth").read_bytes()
    (output / "ckpt_epoch_2.pth").write_bytes(data[: len(data) // 2])
    os.utime(output / "ckpt_epoch_1.pth", (1000, 1000))
    assert run(nano_yaml, tmp_path) == 0
    text = log_text(tmp_path)
    assert "WARNING" in text and "ckpt_epoch_2.pth" in text and "truncated" in text
    assert f"auto resuming from {output / 'ckpt_epoch_1.pth'}" in text
    assert [r["epoch"] for r in read_log(output)] == [2] * 6
    theirs = load_file(trained / "ckpt_epoch_2.pth")["model"]
    ours = load_file(output / "ckpt_epoch_2.pth")["model"]
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_resume_flag_wins_over_auto_resume(trained, nano_yaml, tmp_path):
    output = tmp_path / "nano"
    output.mkdir()
    shutil.copy(trained / "ckpt_epoch_1.pth", output)
    assert run(nano_yaml, tmp_path, "--resume", trained / "ckpt_epoch_2.pth") == 0
    assert "all 3 epochs are done already" in log_text(tmp_path)


def test_best_ema_accuracy_survives_a_resume(trained, nano_yaml, tmp_path):
    """The best average is not overwritten by the first one after a resume."""
    state = load_file(trained / "ckpt_epoch_1.pth")
    state["max_accuracy"] = state["max_accuracy_ema"] = 100.0
    torch.save(state, tmp_path / "x.pth")
    assert run(nano_yaml, tmp_path, "--resume", tmp_path / "x.pth") == 0
    assert not (tmp_path / "nano" / "ckpt_epoch_ema_best.pth").exists()
    assert not (tmp_path / "nano" / "ckpt_epoch_best.pth").exists()
    assert load_file(tmp_path / "nano" / "ckpt_epoch_2.pth")["max_accuracy_ema"] == 100.0


# ---------------------------------------------------------------------------- training settings
def test_accumulation_equals_a_large_batch(nano_yaml, tmp_path):
    """8 images x 3 = 24 images at once: same learning rate, loss and gradient norm. The layers of
    this model with statistics over the batch are replaced, the only ones where it must differ."""
    flags = ["--opts", *QUIET, "TRAIN.BASE_LR", "0.01"]
    build = training.build_model

    def without_batch_norm(config):
        model = build(config)
        model.conv_head[1][0] = torch.nn.GroupNorm(1, model.conv_head[1][0].num_features)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "build_model", without_batch_norm)
        assert run(nano_yaml, tmp_path / "a", "--accumulation-steps", 3, *flags) == 0
        assert run(nano_yaml, tmp_path / "b", "--batch-size", 24, *flags) == 0
    small, large = read_log(tmp_path / "a" / "nano"), read_log(tmp_path / "b" / "nano")
    assert len(small) == 6 and len(large) == 2
    for index in range(2):
        group = small[3 * index : 3 * index + 3]
        assert sum(r["loss"] for r in group) / 3 == pytest.approx(large[index]["loss"], rel=1e-4)
        assert group[-1]["grad_norm"] == pytest.approx(large[index]["grad_norm"], rel=1e-3)
        assert group[-1]["lr"] == pytest.approx(large[index]["lr"], rel=1e-6)
        assert group[-1]["step"] == large[index]["step"] == index


def test_a_smaller_last_group_is_applied_with_its_own_mean(nano_yaml, tmp_path):
    flags = ["--accumulation-steps", 4, "--opts", "TRAIN.EPOCHS", "1"]
    assert run(nano_yaml, tmp_path, *flags) == 0
    assert [r["step"] for r in read_log(tmp_path / "nano")][-1] == 1  # 6 batches: 4 and 2
    assert engine.updates_per_epoch(6, 4) == 2 and engine.updates_per_epoch(6, 1) == 6


def test_bfloat16_on_cpu(trained, nano_yaml, tmp_path):
    flags = ["--amp-dtype", "bfloat16", "--opts", "TRAIN.EPOCHS", "1"]
    assert run(nano_yaml, tmp_path, *flags) == 0
    ours, theirs = read_log(tmp_path / "nano")[0], read_log(trained)[0]
    assert ours["loss"] != theirs["loss"] and ours["loss"] == pytest.approx(
        theirs["loss"], rel=0.05
    )
    assert "autocast torch.bfloat16" in log_text(tmp_path)


def test_float16_on_cpu_is_refused(nano_yaml, tmp_path, capfd):
    assert run(nano_yaml, tmp_path, "--amp-dtype", "float16") == 1
    assert "bfloat16" in capfd.readouterr().out


@pytest.mark.parametrize("clip", ["None", "0"])
def test_no_clipping_still_logs_the_norm(nano_yaml, tmp_path, clip):
    flags = ["--opts", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.CLIP_GRAD", clip]
    assert run(nano_yaml, tmp_path, *flags) == 0
    records = read_log(tmp_path / "nano")
    assert all(math.isfinite(r["grad_norm"]) and r["grad_norm"] > 0 for r in records)
    assert records[-1]["loss"] != records[0]["loss"]
    weights = load_file(tmp_path / "nano" / "ckpt_epoch_0.pth")["optimizer"]["state"]
    assert any(state["exp_avg"].abs().max() > 0 for state in weights.values())


def test_cutmix_only_trains_on_soft_targets(nano_yaml, tmp_path, monkeypatch):
    seen = []
    build = engine.build_criterion
    monkeypatch.setattr(engine, "build_criterion", lambda *a: seen.append(build(*a)) or seen[-1])
    assert run(nano_yaml, tmp_path, "--opts", "TRAIN.EPOCHS", "1", "AUG.CUTMIX", "1.0") == 0
    assert type(seen[0]).__name__ == "SoftTargetCrossEntropy"
    assert type(build(False, 0.1)).__name__ == "LabelSmoothingCrossEntropy"
    assert type(build(False, 0.0)).__name__ == "CrossEntropyLoss"


def test_learning_rate_scaling(nano_config):
    nano_config.DATA.BATCH_SIZE, nano_config.TRAIN.BASE_LR = 128, 0.5
    nano_config.freeze()
    assert training.scale_learning_rate(nano_config, 8).TRAIN.BASE_LR == 0.5 * 128 * 8 / 512
    nano_config.defrost()
    nano_config.TRAIN.ACCUMULATION_STEPS = 4
    scaled = training.scale_learning_rate(nano_config, 2)
    assert scaled.TRAIN.BASE_LR == 1.0 and scaled.TRAIN.MIN_LR == 0.002
    assert nano_config.TRAIN.BASE_LR == 0.5


def test_checkpointing_and_compile_flags(nano_yaml, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    flags = ["--use-checkpoint", "--compile", "--opts", "TRAIN.EPOCHS", "1"]
    assert run(nano_yaml, tmp_path, *flags) == 0
    assert len(compiled) == 1


def test_22k_head_is_scored_through_the_map(trained, nano_yaml):
    """A model with 21841 outputs and labels of 1000 classes."""
    rows = [(7 * i + 3) % 21841 for i in range(1000)]

    class Model(torch.nn.Module):
        def forward(self, images):  # puts image i into the 22k class of 1k class i
            output = torch.zeros(len(images), 21841)
            output[range(len(images)), [rows[int(i)] for i in images]] = 1
            return output

    labels = torch.arange(0, 1000, 100)
    batches = [(labels.float(), labels), (labels.float(), labels + 1)]
    found = evaluation.rows_for_scoring(21841, 1000, False, rows)
    result = evaluation.validate(Model(), batches, device=torch.device("cpu"), head_rows=found)
    assert result.acc1 == 50 and result.images == 20
    assert evaluation.rows_for_scoring(21841, 21841, False, rows) is None
    assert evaluation.rows_for_scoring(21841, 21841, True, rows) is rows
    assert evaluation.rows_for_scoring(1000, 1000, True, rows) is None


# ------------------------------------------------------------------------------------ NaN stops
def test_nan_stops_the_run_and_names_the_module(nano_yaml, tmp_path, capfd, monkeypatch):
    build = training.build_model

    def with_a_bad_layer(config):
        model = build(config)
        calls = []

        def spoil(module, args, output):
            calls.append(1)
            return output * math.nan if len(calls) >= 4 else output

        model.levels[1].blocks[0].mlp.fc1.register_forward_hook(spoil)
        return model

    monkeypatch.setattr(training, "build_model", with_a_bad_layer)
    assert run(nano_yaml, tmp_path) == 1
    text = capfd.readouterr().out
    assert "epoch 0, iteration 3: the loss is not finite" in text
    assert "non-finite output is levels.1.blocks.0.mlp.fc1 (Linear), from finite inputs" in text
    assert not list((tmp_path / "nano").glob("*.pth"))


def test_nan_causes_that_are_not_a_module(nano_config):
    from nonfinite import diagnose

    model = training.build_model(nano_config)
    images = torch.rand(2, 3, 32, 32)
    assert "no module gives" in diagnose(model, [images])
    images[1, 0, 3, 3] = math.inf
    assert "the input itself is not finite: images, samples [1]" in diagnose(model, [images])
    with torch.no_grad():
        model.levels[2].blocks[0].mlp.fc2.bias[0] = math.nan
    assert "levels.2.blocks.0.mlp.fc2.bias is already" in diagnose(
        model, [torch.rand(2, 3, 32, 32)]
    )


def test_nan_gradient_with_a_finite_loss_stops_before_the_update():
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    stepper = engine.TorchStepper(layer, optimizer, type("S", (), {"step_update": print})())
    before = layer.weight.detach().clone()
    stepper.backward((layer(torch.zeros(1, 2)).sum() * 0).abs().sqrt())  # 0 * infinity
    with pytest.raises(engine.NonFiniteError, match=r"gradient norm is nan.*bias"):
        stepper.update(0)
    assert torch.equal(layer.weight, before)


# ---------------------------------------------------------------------------------- command line
def test_errors_and_exit_codes(nano_yaml, tmp_path, capfd, caplog):
    with pytest.raises(SystemExit) as stop:
        main.main(["--cfg", "x", "--bacth-size", "3"])
    assert stop.value.code == 2 and "did you mean --batch-size?" in capfd.readouterr().err
    assert run(nano_yaml, tmp_path, "--opts", "TRAIN.EPOHCS", "3") == 1
    assert "did you mean 'TRAIN.EPOCHS'?" in caplog.text
    assert run(nano_yaml, tmp_path, "--resume", "nowhere.pth") == 1
    assert "nowhere.pth does not exist" in capfd.readouterr().out
    assert run(nano_yaml, tmp_path, "--data-path", tmp_path / "none") == 1
    assert run(nano_yaml, tmp_path, "--device", "cuda:99") == 1
    (tmp_path / "file").touch()
    assert run(nano_yaml, tmp_path / "file") == 1
    assert "choose another with --output" in caplog.text


def test_program_in_a_process_of_its_own(nano_yaml, tmp_path):
    done = run_program("main.py", "-h", cwd=tmp_path)
    assert done.returncode == 0 and "--accumulation-steps" in done.stdout
    done = run_program("main.py", "--cfg", tmp_path / "none.yaml", cwd=tmp_path)
    assert done.returncode == 1 and "none.yaml" in done.stderr and "Traceback" not in done.stderr


# ------------------------------------------------------------------------------- two processes
def test_two_processes(trained, nano_yaml, tmp_path):
    """Half the batch on each: same schedule, all images evaluated once; ZeRO and eval alike."""
    flags = ["--cfg", nano_yaml, "--output", tmp_path, "--batch-size", 4]
    done = torchrun(*flags, "--use-zero", "--local_rank", "0")
    assert done.returncode == 0, done.stderr[-3000:]
    output = tmp_path / "nano"
    assert (output / "log_rank1.txt").exists()
    evaluations = read_log(output, "eval", ema=False)
    assert [r["images"] for r in evaluations] == [22] * 3
    ours, theirs = read_log(output), read_log(trained)
    assert [r["lr"] for r in ours] == pytest.approx([r["lr"] for r in theirs])
    assert ours[-1]["loss"] < ours[0]["loss"] and evaluations[-1]["acc1"] > 60
    best = load_file(output / "ckpt_epoch_best.pth")
    assert best["max_accuracy"] == max(r["acc1"] for r in evaluations)
    sizes = [len(state) for state in best["optimizer"]["state"].values()]
    assert len(sizes) == len(best["optimizer"]["param_groups"]) and min(sizes) == 3  # both shards
    source = output / "ckpt_epoch_best.pth"
    assert run(nano_yaml, tmp_path / "one", "--eval", "--resume", source) == 0
    (single,) = read_log(tmp_path / "one" / "nano", "eval", ema=False)
    double = evaluations[best["epoch"]]
    assert (single["acc1"], single["images"]) == (double["acc1"], 22)
    assert single["loss"] == pytest.approx(double["loss"], rel=1e-6)
    # a ZeRO checkpoint goes on in one process with the plain optimizer
    flags = ["--resume", source, "--opts", "TRAIN.EPOCHS", "4"]
    assert run(nano_yaml, tmp_path / "one", *flags) == 0


def test_all_ranks_stop_on_nan(nano_yaml, tmp_path):
    """Only rank 1 sees the bad number; both stop, and rank 0's log names the module. With FSDP2 the
    search for it takes all processes."""
    tests = CLASSIFICATION / "tests"
    code = (
        f"import sys\nsys.path[:0] = [{str(CLASSIFICATION)!r}, {str(tests)!r}]\n"
        "import os, main, series, torch, training\n"
        "build = training.build_model\n"
        "def spoiled(config):\n"
        "    model = build(config)\n"
        "    if os.environ['RANK'] == '1':\n"
        "        hook = lambda m, a, o: o * float('nan')\n"
        "        model.levels[3].blocks[0].mlp.fc2.register_forward_hook(hook)\n"
        "    return model\n"
        "training.build_model = spoiled\n"
        "series.keep_group()\n"
        "folder, *common = sys.argv[1:]\n"
        "run = lambda name, *more: main.main([*common, '--output', folder + name, *more])\n"
        "codes = [run('/ddp')]\n"
        "if hasattr(torch.distributed.fsdp, 'fully_shard'):\n"
        "    codes.append(run('/fsdp', '--fsdp'))\n"
        "sys.exit(set(codes) != {1})\n"
    )
    script = tmp_path / "spoiled.py"
    script.write_text(code)
    done = torchrun(tmp_path, "--cfg", nano_yaml, "--batch-size", 4, program=script)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    for way in sorted(path.name for path in tmp_path.glob("*dp")):
        for rank in (0, 1):
            text = (tmp_path / way / "nano" / f"log_rank{rank}.txt").read_text()
            assert "rank 1: loss nan, the first module" in text
            assert "levels.3.blocks.0.mlp.fc2" in text


def test_an_error_on_one_rank_is_shown_and_stops_all(trained, nano_yaml, tmp_path, colours):
    """Rank 1 alone meets the unreadable image, which the run does not tolerate."""
    shutil.copytree(colours, tmp_path / "data")
    (tmp_path / "data" / "val" / "blue" / "001.png").write_bytes(b"no image")
    flags = ["--cfg", nano_yaml, "--output", tmp_path, "--data-path", tmp_path / "data", "--eval"]
    source = trained / "ckpt_epoch_best.pth"
    done = torchrun(*flags, "--resume", source, "--opts", "DATA.MAX_CORRUPT", "0")
    assert done.returncode != 0
    assert "nano rank 1]" in done.stdout and "1 images cannot be read" in done.stdout
    assert "another process ended" in done.stdout and "[rank0]: Traceback" not in done.stderr


def test_ranks_that_measure_differently_save_together(nano_yaml, tmp_path):
    """With TEST.SEQUENTIAL each rank measures for itself; rank 0 decides what is best."""
    code = (
        "import dataclasses, evaluation, os, sys, main\n"
        "validate = evaluation.validate\n"
        "def differing(*args, **options):\n"
        "    found = validate(*args, **options)\n"
        "    return dataclasses.replace(found, acc1=50.0 * (os.environ['RANK'] == '0'))\n"
        "evaluation.validate = differing\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    script = tmp_path / "differing.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(CLASSIFICATION)!r})\n" + code)
    flags = ["--cfg", nano_yaml, "--output", tmp_path, "--batch-size", 4, "--opts", *QUIET]
    done = torchrun(*flags, "TEST.SEQUENTIAL", "True", program=script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_file(tmp_path / "nano" / "ckpt_epoch_best.pth")["max_accuracy"] == 50.0


def test_ddp_gradients_are_those_of_one_process(nano_yaml, tmp_path, colours):
    """Without random parts, two half batches give one process's gradient norm at the first step."""
    flags = ["--cfg", nano_yaml, "--output", tmp_path / "two", "--batch-size", 4]
    quiet = ["--opts", *QUIET]
    code = (
        "import sys, main, torch, training\n"
        "build = training.build_model\n"
        "def without_batch_norm(config):\n"
        "    model = build(config)\n"
        "    norm = model.conv_head[1]\n"
        "    norm[0] = torch.nn.GroupNorm(1, norm[0].num_features)\n"
        "    return model\n"
        "training.build_model = without_batch_norm\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    script = tmp_path / "quiet.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(CLASSIFICATION)!r})\n" + code)
    done = torchrun(*flags, *quiet, program=script)
    assert done.returncode == 0, done.stderr[-3000:]
    single = ["--cfg", nano_yaml, "--output", tmp_path / "one", "--batch-size", 8, *quiet]
    done = run_program(script, *single)
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = read_log(tmp_path / "two" / "nano"), read_log(tmp_path / "one" / "nano")
    assert len(two) == len(one) == 6
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-4)
