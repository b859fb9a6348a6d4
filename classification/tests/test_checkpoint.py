"""Checkpoints: safe reading, whole writing, foreign files, heads, centre removal, resuming."""

import errno
import hashlib
import http.server
import os
import pickle
import resource
import subprocess
import sys
import threading
from collections import OrderedDict

import pytest
import torch
from timm.utils import ModelEmaV3
from yacs.config import CfgNode

import checkpoint as ckpt
from models import build_model, safe_load, weights
from models.fetch import fetch
from models.safe_load import CheckpointError, load_file
from optimizer import build_optimizer


def model_of(config, **changes):
    config = config.clone()
    config.defrost()
    for key, value in changes.items():
        if key in config.MODEL:
            config.MODEL[key] = value
        else:
            config.MODEL.INTERN_IMAGE[key] = value
    torch.manual_seed(sum(map(ord, str(changes))))
    return build_model(config)


def load(model, state, **options):
    return weights.load_weights(model, state, source="file.pth", **options)


def same(model, state) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items())


# ------------------------------------------------------------------------------- safe reading
def upstream_file(path):
    """A file as the original implementation writes it: the configuration is a pickled CfgNode."""
    config = CfgNode({"MODEL": {"NAME": "t", "DEPTHS": [4, 4, 18, 4]}, "TRAIN": {"LR": 1e-3}})
    config.freeze()
    torch.save(
        {
            "model": OrderedDict(w=torch.arange(3.0)),
            "config": config,
            "epoch": 7,
            "max_accuracy": 1.5,
        },
        path,
    )


@pytest.mark.parametrize("reader", ["present torch", "older torch"])
def test_reads_the_original_implementations_files(tmp_path, monkeypatch, reader):
    if reader == "older torch":
        monkeypatch.setattr(safe_load, "_can_rename_globals", lambda: False)
    path = tmp_path / "up.pth"
    upstream_file(path)
    loaded = load_file(path)
    assert torch.equal(loaded["model"]["w"], torch.arange(3.0)) and loaded["epoch"] == 7
    assert loaded["config"] == {
        "MODEL": {"NAME": "t", "DEPTHS": [4, 4, 18, 4]},
        "TRAIN": {"LR": 1e-3},
    }
    assert type(loaded["config"]) is dict and type(loaded["config"]["MODEL"]) is dict


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("reader", ["present torch", "older torch"])
@pytest.mark.parametrize("legacy", [False, True])
def test_refuses_files_that_would_run_code(tmp_path, monkeypatch, reader, legacy):
    if reader == "older torch":
        monkeypatch.setattr(safe_load, "_can_rename_globals", lambda: False)
    path, target = tmp_path / "bad.pth", tmp_path / "made by the checkpoint"
    torch.save(
        {"model": {"w": torch.ones(1)}, "extra": Malicious(target)},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(CheckpointError, match=r"refused.*mkdir"):
        load_file(path)
    assert not target.exists()


def test_refuses_a_bare_malicious_pickle(tmp_path):
    path, target = tmp_path / "bad.pth", tmp_path / "made"
    path.write_bytes(pickle.dumps(Malicious(target), protocol=4))
    with pytest.raises(CheckpointError):
        load_file(path)
    assert not target.exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_file_is_an_error_that_names_it(trained, tmp_path, keep):
    data = (trained / "ckpt_epoch_best.pth").read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"cut\.pth .*truncated"):
        load_file(path)


def test_a_large_file_cut_near_its_beginning_is_called_truncated(tmp_path):
    """PyTorch then says "Invalid argument", as the system does of a faulty disk."""
    path = tmp_path / "cut.pth"
    torch.save({"weight": torch.zeros(100_000)}, path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match=r"cut\.pth .*truncated") as error:
        load_file(path)
    assert isinstance(error.value.__cause__, OSError)


def test_own_files_are_plain(trained):
    """They load with torch's own strict reader, with nothing allowed on top."""
    loaded = torch.load(trained / "ckpt_epoch_2.pth", weights_only=True)
    assert set(loaded) == {
        "model", "optimizer", "lr_scheduler", "max_accuracy", "epoch", "config", "model_ema",
        "max_accuracy_ema", "class_names",
    }  # fmt: skip
    assert loaded["epoch"] == 2 and loaded["class_names"] == ["blue", "green", "grey", "red"]
    assert type(loaded["config"]) is dict and loaded["config"]["MODEL"]["NUM_CLASSES"] == 4
    assert set(loaded["model"]) == set(loaded["model_ema"])
    assert len(loaded["optimizer"]["param_groups"]) == len(loaded["optimizer"]["state"])


# ------------------------------------------------------------------------------------ fetching
def test_missing_file_names_the_path():
    with pytest.raises(CheckpointError, match=r"nowhere/x\.pth does not exist"):
        fetch("nowhere/x.pth")


def test_offline_url_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError) as error:
        fetch("http://127.0.0.1:9/nets/tiny-deadbeef.pth")
    text = str(error.value)
    assert "http://127.0.0.1:9/nets/tiny-deadbeef.pth" in text and "deadbeef" in text
    assert str(tmp_path / "checkpoints" / "tiny-deadbeef.pth") in text


def test_url_is_downloaded_once_and_its_hash_checked(tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    torch.save({"w": torch.ones(2)}, served / "x.pth")
    digest = hashlib.sha256((served / "x.pth").read_bytes()).hexdigest()[:8]
    good, bad = f"net-{digest}.pth", "net-00000000.pth"
    for name in (good, bad):
        (served / name).write_bytes((served / "x.pth").read_bytes())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/"
    try:
        path = fetch(base + good)
        assert load_file(path)["w"].shape == (2,)
        with pytest.raises(CheckpointError, match="not the expected one"):
            fetch(base + bad)
        assert not (path.parent / bad).exists()
    finally:
        server.shutdown()
        server.server_close()
    assert fetch(base + good) == path  # no server any more: from the folder
    path.write_bytes(b"changed")
    with pytest.raises(CheckpointError, match=f"asks for {digest}"):
        fetch(base + good)


# ------------------------------------------------------------------------------------- writing
def test_failed_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    writer = ckpt.CheckpointWriter(tmp_path)
    writer.save("ckpt_epoch_best", {"epoch": 1})

    def full(state, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device.*untouched"):
        writer.save("ckpt_epoch_best", {"epoch": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt_epoch_best.pth"]
    assert load_file(tmp_path / "ckpt_epoch_best.pth")["epoch"] == 1


def test_a_real_write_limit_is_reported(tmp_path):
    """The same with the operating system refusing bytes in the middle of the file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = ckpt.CheckpointWriter(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="could not write"):
            writer.save("ckpt_epoch_0", {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_an_error(tmp_path):
    writer = ckpt.CheckpointWriter(tmp_path / "out")
    (tmp_path / "out").rmdir()
    with pytest.raises(CheckpointError, match="could not write"):
        writer.save("ckpt_epoch_0", {})


def test_stale_temporary_files_are_removed(tmp_path):
    (tmp_path / ".ckpt_epoch_3.pth.tmp-123").write_bytes(b"half")
    ckpt.CheckpointWriter(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_killed_in_the_middle_of_writing(tmp_path):
    """SIGKILL while bytes are being written: no file under the final name, resume is not fooled."""
    code = (
        "import os, signal, sys, torch, checkpoint\n"
        "real = torch.save\n"
        "def save(state, file):\n"
        "    file.write(b'x' * 1000); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "writer = checkpoint.CheckpointWriter(sys.argv[1])\n"
        "writer.save('ckpt_epoch_0', {'epoch': 0})\n"
        "torch.save = save\n"
        "writer.save('ckpt_epoch_1', {'epoch': 1})\n"
    )
    here = str(ckpt.Path(ckpt.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=here,
        env={**os.environ, "PYTHONPATH": here},
    )
    assert done.returncode == -9
    assert [p.name for p in tmp_path.glob("*.pth")] == ["ckpt_epoch_0.pth"]
    assert len(list(tmp_path.iterdir())) == 2
    assert ckpt.find_resumable(tmp_path, ("epoch",)).name == "ckpt_epoch_0.pth"


def test_old_periodic_checkpoints_are_pruned(tmp_path):
    writer = ckpt.CheckpointWriter(tmp_path, save_freq=2, keep=2)
    for epoch in (0, 2, 4, 6):
        writer.save_epoch(epoch, {"epoch": epoch})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt_epoch_4.pth", "ckpt_epoch_6.pth"]


def test_auto_resume_takes_the_newest_usable(tmp_path, caplog):
    whole = {"model": {}, "optimizer": {}, "lr_scheduler": {}, "epoch": 0}
    for age, (name, state) in enumerate(
        [("old", whole), ("good", whole), ("weights", {"model": {}}), ("cut", whole)]
    ):
        torch.save(state, tmp_path / f"{name}.pth")
        os.utime(tmp_path / f"{name}.pth", (1000 + age, 1000 + age))
    data = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    os.utime(tmp_path / "cut.pth", (2000, 2000))
    assert ckpt.find_resumable(tmp_path).name == "good.pth"
    assert "cut.pth" in caplog.text and "weights.pth: no optimizer" in caplog.text
    assert ckpt.find_resumable(tmp_path, ("model",)).name == "weights.pth"
    assert ckpt.find_resumable(tmp_path / "nothing") is None


# ------------------------------------------------------------------------------ loading weights
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"module": s},
        lambda s: {"state_dict": s},
        lambda s: {"model": s, "max_accuracy": torch.tensor(1.0), "epoch": 3},
        lambda s: {"module." + k: v for k, v in s.items()},
        lambda s: {"module._orig_mod." + k: v for k, v in s.items()},
        lambda s: {"state_dict": {"backbone." + k: v for k, v in s.items()}},
        lambda s: {"model": {"student." + k: v for k, v in s.items()}},
        lambda s: {
            **{"student.backbone." + k: v * 0 for k, v in s.items()},
            **{"teacher.backbone." + k: v for k, v in s.items()},
        },
        lambda s: {"student": {k: v * 0 for k, v in s.items()}, "teacher": s},
    ],
)
def test_wrappers_and_prefixes(nano_config, wrap):
    state = model_of(nano_config, CLS_SCALE=1.5).state_dict()
    model = model_of(nano_config)
    assert not same(model, state)
    report = load(model, wrap(state))
    assert same(model, state) and not (report.missing or report.unexpected or report.resized)


def test_report_counts_and_names(nano_config, caplog):
    caplog.set_level("INFO")
    state = model_of(nano_config).state_dict()
    del state["patch_embed.conv1.bias"]
    state["surplus"] = torch.ones(1)
    state["relative_position_index"] = torch.ones(1)  # left over by another architecture: silent
    state["levels.0.blocks.0.mlp.fc1.bias"] = torch.ones(3)
    report = load(model_of(nano_config), state)
    assert report.missing == ["patch_embed.conv1.bias"] and report.unexpected == ["surplus"]
    assert report.resized == ["levels.0.blocks.0.mlp.fc1.bias (3,) -> (64,)"]
    total = len(model_of(nano_config).state_dict())
    assert f"{total - 2} matched, 1 missing, 1 unexpected, 1 resized" in caplog.text
    assert "missing: patch_embed.conv1.bias" in caplog.text


def test_another_size_is_named(nano_config):
    other = model_of(nano_config, CHANNELS=32, GROUPS=[2, 4, 8, 16], DEPTHS=[1, 2, 1, 1])
    with pytest.raises(CheckpointError) as error:
        load(model_of(nano_config), {"model": other.state_dict()})
    assert "channels 32, depths [1, 2, 1, 1]" in str(error.value)
    assert "channels 16, depths [1, 1, 1, 1]" in str(error.value)


def test_detection_checkpoints(nano_config):
    state = model_of(nano_config).state_dict()
    found = {f"backbone.{k}": v for k, v in state.items() if k.startswith(("levels", "patch"))}
    found |= {"neck.lateral.weight": torch.ones(1), "roi_head.fc.weight": torch.ones(1)}
    model = model_of(nano_config)
    report = load(model, {"state_dict": found})  # its backbone is of use for fine-tuning
    assert report.new_head and set(report.unexpected) == {
        "neck.lateral.weight",
        "roi_head.fc.weight",
    }
    only_heads = {k: v for k, v in found.items() if not k.startswith("backbone")}
    with pytest.raises(CheckpointError, match="looks like a detection checkpoint"):
        load(model, {"state_dict": only_heads})
    with pytest.raises(CheckpointError, match="no weights"):
        load(model, {"epoch": 3})


def test_another_class_count(nano_config):
    state = model_of(nano_config, NUM_CLASSES=7).state_dict()
    model = model_of(nano_config)
    fresh = model.head.weight.detach().clone()
    report = load(model, state)
    assert report.new_head and torch.equal(model.head.weight, fresh) and not report.missing
    assert "head has 7 classes, the model 4: head initialised anew" in report.notes[0]
    report = load(model, state, rand_init_head=True)
    assert report.new_head and torch.equal(model.head.weight, fresh * 0.001)
    assert torch.equal(model.patch_embed.conv1.weight, state["patch_embed.conv1.weight"])
    with pytest.raises(CheckpointError, match="7 classes, the model has 4"):
        load(model_of(nano_config), state, evaluation=True)


def test_22k_head_gives_its_1k_rows(nano_config):
    state = model_of(nano_config, NUM_CLASSES=21841).state_dict()
    model = model_of(nano_config, NUM_CLASSES=1000)
    report = load(model, state, evaluation=True)
    rows = weights.read_head_map()
    assert len(rows) == 1000 and not report.new_head
    assert torch.equal(model.head.weight, state["head.weight"][rows])
    assert torch.equal(model.head.bias, state["head.bias"][rows])
    assert same(model, {k: v for k, v in state.items() if not k.startswith("head.")})


def test_head_map_is_checked(tmp_path):
    path = tmp_path / "map.txt"
    path.write_text("1\n2\n")
    with pytest.raises(CheckpointError, match=r"map\.txt has 2 entries"):
        weights.read_head_map(path)
    with pytest.raises(CheckpointError, match="MODEL.HEAD_MAP"):
        weights.read_head_map(tmp_path / "none.txt")


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_centre_rows(group, kernel):
    """Against a walk over the points, width outermost, that leaves the centre out."""
    points = [(i, j) for i in range(kernel) for j in range(kernel)]
    for width in (1, 2):
        labels = [(g, p, w) for g in range(group) for p in points for w in range(width)]
        kept = [x for x in labels if x[1] != (kernel // 2, kernel // 2)]
        rows = weights.center_rows(len(labels), len(kept), width)
        assert [x for i, x in enumerate(labels) if i not in rows] == kept
        if kernel == 3:
            rule = (4,) if width == 1 else (8, 9)
            assert rows == [i for i in range(len(labels)) if i % (9 * width) in rule]
    assert weights.center_rows(36, 36, 1) is None and weights.center_rows(32, 36, 1) is None
    assert weights.center_rows(36, 30, 1) is None


def test_centre_is_removed_once(nano_config):
    full = model_of(nano_config)
    model = model_of(nano_config, REMOVE_CENTER=True)
    report = load(model, full.state_dict())
    keep = [i for i in range(9) if i != 4]
    block = full.levels[1].blocks[0].dcn
    want = block.mask.weight.view(2, 9, -1)[:, keep].flatten(0, 1)
    assert torch.equal(model.levels[1].blocks[0].dcn.mask.weight, want)
    want = block.offset.bias.view(2, 9, 2)[:, keep].flatten()
    assert torch.equal(model.levels[1].blocks[0].dcn.offset.bias, want)
    assert not report.resized and "centre point removed from 16" in report.notes[0]
    again = model_of(nano_config, REMOVE_CENTER=True)
    report = load(again, model.state_dict())  # trained without the centre: nothing to remove
    assert same(again, model.state_dict()) and not report.notes
    report = load(model_of(nano_config), model.state_dict())  # the other way round cannot be
    assert len(report.resized) == 16
    with pytest.raises(CheckpointError, match=r"16 weights .*REMOVE_CENTER it was trained with"):
        load(model_of(nano_config), model.state_dict(), evaluation=True)


def test_moving_average_is_fitted_like_the_model(nano_config):
    """Its centre points are removed too, when the model has none."""
    full = model_of(nano_config).state_dict()
    model = model_of(nano_config, REMOVE_CENTER=True)
    report = load(model, full)
    ema = ModelEmaV3(model_of(nano_config, REMOVE_CENTER=True))
    ckpt.load_ema({"model_ema": full}, model_of(nano_config, REMOVE_CENTER=True), ema)
    assert same(ema.module, model.state_dict()) and not report.resized


def test_joint_image_text_checkpoint():
    from torch import nn

    model = nn.Module()
    model.dcnv3_head_x3 = nn.Conv2d(2, 2, 1)
    model.clip_projector = nn.Linear(2, 2)
    model.fc_norm = nn.Sequential(nn.LayerNorm(2))
    model.head = nn.Linear(2, 3)
    state = {
        "visual.dcnv3_head_x3.weight": torch.ones(2, 2, 1, 1),
        "dcnv3_head_x3.bias": torch.ones(2),
        "visual.clip_projector.weight": torch.full((2, 2), 2.0),
        "clip_projector.bias": torch.full((2,), 2.0),
        "clip.classifier_ln.weight": torch.full((2,), 3.0),
        "clip.classifier_ln.bias": torch.full((2,), 3.0),
        "clip.classifier.weight": torch.full((3, 2), 4.0),
        "clip.classifier.bias": torch.full((3,), 4.0),
        "visual.mask_token": torch.ones(1),
        "text.transformer.weight": torch.ones(9),
    }
    report = load(model, {"model": state})
    assert not (report.missing or report.unexpected or report.resized)
    values = {name: value.unique().tolist() for name, value in model.named_parameters()}
    assert values["fc_norm.0.weight"] == [3.0] and values["head.bias"] == [4.0]
    assert values["clip_projector.weight"] == [2.0] and values["dcnv3_head_x3.bias"] == [1.0]


# ------------------------------------------------------------------------------------ resuming
class Schedule:
    def __init__(self, **state):
        self.state = state

    def state_dict(self):
        return self.state


def resume(checkpoint, model, optimizer, schedule=None):
    return ckpt.resume_training(
        checkpoint, source="run/x.pth", model=model, optimizer=optimizer,
        scheduler=schedule or Schedule(),
    )  # fmt: skip


def test_optimizer_of_another_set_up_is_an_error(nano_config, trained):
    saved = load_file(trained / "ckpt_epoch_2.pth")
    model = model_of(nano_config)
    point = resume(saved, model, build_optimizer(nano_config, model))
    assert point.start_epoch == 3 and point.max_accuracy == saved["max_accuracy"] > 0
    cases = {
        "another optimizer": torch.optim.SGD(
            [{"params": [p], "name": n} for n, p in model.named_parameters()], lr=1
        ),
        "groups, now": torch.optim.AdamW(model.parameters()),
        "parameter 0 is": torch.optim.AdamW(
            [{"params": [p], "name": n} for n, p in reversed(list(model.named_parameters()))]
        ),
    }
    for message, optimizer in cases.items():
        with pytest.raises(CheckpointError, match=f"{message}.*--pretrained"):
            resume(saved, model, optimizer)


def test_changed_optimizer_settings_are_used_and_told(nano_config, trained, caplog):
    saved = load_file(trained / "ckpt_epoch_2.pth")
    model = model_of(nano_config)
    resume(saved, model, build_optimizer(nano_config, model))
    assert "settings differ" not in caplog.text
    nano_config.TRAIN.WEIGHT_DECAY, nano_config.TRAIN.OPTIMIZER.BETAS = 0.3, [0.8, 0.9]
    optimizer = build_optimizer(nano_config, model)
    resume(saved, model, optimizer)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.3}
    assert all(tuple(g["betas"]) == (0.8, 0.9) for g in optimizer.param_groups)
    assert "weight_decay 0.05 -> 0.3" in caplog.text and "betas" in caplog.text
    assert len(optimizer.state) == len(optimizer.param_groups)


def test_resume_with_another_head_points_to_pretrained(nano_config, trained):
    nano_config.MODEL.NUM_CLASSES = 5
    model = build_model(nano_config)
    with pytest.raises(CheckpointError, match="--pretrained instead of --resume"):
        resume(load_file(trained / "ckpt_epoch_2.pth"), model, build_optimizer(nano_config, model))


def test_weights_only_file_starts_at_epoch_0(nano_config, trained, caplog):
    model = model_of(nano_config)
    state = {"model": load_file(trained / "ckpt_epoch_2.pth")["model"]}
    point = resume(state, model, build_optimizer(nano_config, model))
    assert point.start_epoch == 0 and same(model, state["model"])
    assert "no optimizer, lr_scheduler, epoch" in caplog.text


def test_a_changed_schedule_is_told(nano_config, trained, caplog):
    saved = load_file(trained / "ckpt_epoch_2.pth")
    model = model_of(nano_config)
    resume(saved, model, build_optimizer(nano_config, model), Schedule(t_initial=99))
    assert f"t_initial {saved['lr_scheduler']['t_initial']} -> 99" in caplog.text
