"""What transformers does with the models: Auto classes, Trainer, pipelines, graphs, placement."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_helpers import (
    CLASSES,
    CODE,
    IS_4,
    assert_same_weights,
    pixels,
    tiny_config,
    tiny_model,
    transformers,
)
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)

from huggingface import folder
from huggingface.image_processing import preprocessor_config
from huggingface.model_card import model_card

DTYPE = "torch_dtype" if IS_4 else "dtype"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as convert.py writes it: 5 classes, images of 64 pixels. Do not write into it."""
    path = tmp_path_factory.mktemp("saved") / "tiny"
    model = tiny_model(id2label=dict(enumerate("abcde")), num_labels=5)
    settings = preprocessor_config(64, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    folder.write(path, model, settings, "# tiny\n")
    return path


@pytest.fixture
def remote(monkeypatch, tmp_path):
    """As in a process that does not know `huggingface`, with a fresh cache for remote code."""
    from transformers import dynamic_module_utils
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "internimage")
    for name in (
        "MODEL_MAPPING",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
        "MODEL_FOR_BACKBONE_MAPPING",
    ):
        monkeypatch.setattr(getattr(modeling_auto, name), "_extra_content", {})

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


# --- Auto classes ---------------------------------------------------------------------------------


def test_registered_classes_need_no_remote_code(saved):
    assert type(AutoConfig.from_pretrained(saved)).__module__.startswith("huggingface.")
    assert type(AutoModel.from_pretrained(saved)) is CLASSES["model"]
    model = AutoModelForImageClassification.from_pretrained(saved)
    assert type(model) is CLASSES["classifier"]
    backbone = AutoBackbone.from_config(tiny_config(out_indices=[0, 3]))
    assert type(backbone) is CLASSES["backbone"] and backbone.channels == [16, 128]


AUTO = {
    "AutoModel": "InternImageModel",
    "AutoModelForImageClassification": "InternImageForImageClassification",
}


def test_remote_code_of_the_folder(saved, remote):
    want = tiny_model()
    for auto, name in AUTO.items():
        model = getattr(transformers, auto).from_pretrained(saved, trust_remote_code=True)
        assert type(model).__name__ == name
        assert type(model).__module__.startswith("transformers_modules.")
        with torch.no_grad():
            output, expected = model(pixels()), want(pixels())
        assert [x.shape for x in output.hidden_states] == [x.shape for x in expected.hidden_states]
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(output.logits, expected.logits)
    config = AutoConfig.from_pretrained(saved, trust_remote_code=True, out_indices=[1, 3])
    backbone = AutoBackbone.from_config(config, trust_remote_code=True)
    assert len(backbone(pixels()).feature_maps) == 2


def test_backbone_of_a_folder(saved):
    """AutoBackbone.from_pretrained of transformers 5 asks the hub for the name of the folder."""
    want = tiny_model()(pixels()).last_hidden_state
    backbone = CLASSES["backbone"].from_pretrained(saved, out_indices=[0, 3])
    torch.testing.assert_close(backbone(pixels()).feature_maps[-1], want)
    if IS_4:
        torch.testing.assert_close(
            AutoBackbone.from_pretrained(saved)(pixels()).feature_maps[0], want
        )


def test_saving_a_remote_model_again_copies_its_code(saved, remote, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(saved, trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    assert {file.name for file in (tmp_path / "again").iterdir()} >= CODE
    again = AutoModelForImageClassification.from_pretrained(
        tmp_path / "again", trust_remote_code=True
    )
    assert_same_weights(model, again)
    first, second = (json.loads((path / "config.json").read_text())["auto_map"]
                     for path in (saved, tmp_path / "again"))  # fmt: skip
    assert first == second


def test_a_segmenter_of_transformers_on_this_backbone():
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    backbone = tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = UperNetConfig(
        backbone_config=backbone, num_labels=3, hidden_size=16, auxiliary_in_channels=64,
        auxiliary_channels=8,
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(config).eval()
    assert isinstance(model.backbone, CLASSES["backbone"])
    with torch.no_grad():
        assert model(pixels()).logits.shape == (2, 3, 64, 64)


# --- loading --------------------------------------------------------------------------------------


def test_the_classifiers_file_loads_into_the_model_without_a_word(saved):
    model, info = CLASSES["model"].from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    classifier = tiny_model()
    for key, value in model.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[key]), key


def test_fine_tuning_with_other_labels(saved):
    names = {0: "yes", 1: "no", 2: "perhaps"}
    model, info = CLASSES["classifier"].from_pretrained(
        saved, num_labels=3, id2label=names, label2id={v: k for k, v in names.items()},
        ignore_mismatched_sizes=True, output_loading_info=True,
    )  # fmt: skip
    assert model.config.id2label == names and model.model.head.weight.shape == (3, 192)
    mismatched = info["mismatched_keys"]  # keys, or keys with shapes
    assert {entry if isinstance(entry, str) else entry[0] for entry in mismatched} == {
        "model.head.weight", "model.head.bias"
    }  # fmt: skip
    assert not model.model.head.bias.any() and 0.01 < model.model.head.weight.std() < 0.03
    old = tiny_model().state_dict()
    for key, value in model.state_dict().items():
        assert key.startswith("model.head.") or torch.equal(value, old[key]), key
    with pytest.raises(Exception, match="size mismatch|ignore_mismatched_sizes"):
        CLASSES["classifier"].from_pretrained(saved, num_labels=3)


def test_missing_weights_are_initialised_and_the_rest_is_kept(saved, tmp_path):
    """A file without one block's operator and one bias: their own initial values."""
    from safetensors.torch import load_file, save_file

    state = load_file(saved / "model.safetensors")
    lost = [key for key in state if key.startswith("model.levels.1.blocks.0.dcn.")]
    lost.append("model.levels.0.blocks.0.mlp.fc1.bias")  # the weight beside it is there
    save_file(
        {key: value for key, value in state.items() if key not in lost},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    model, info = CLASSES["classifier"].from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(lost)
    dcn = model.model.levels[1].blocks[0].dcn
    assert not dcn.offset.weight.any() and not dcn.mask.bias.any()
    bound = (6 / 64) ** 0.5  # Xavier
    assert 0.9 * bound < dcn.input_proj.weight.abs().max() <= bound
    for key, value in model.state_dict().items():
        assert key in lost or torch.equal(value, state[key]), key


def test_half_precision(saved):
    model = AutoModelForImageClassification.from_pretrained(saved, **{DTYPE: torch.bfloat16})
    assert model.dtype == torch.bfloat16
    want = tiny_model()(pixels()).logits
    got = model(pixels()).logits  # float32 images are converted
    assert got.dtype == torch.bfloat16
    assert (got - want).abs().max() < 0.1 * want.abs().max()


# --- placement ------------------------------------------------------------------------------------


def test_parts_on_several_places(saved, tmp_path):
    """Weights on the disk are fetched when their layer runs."""
    pytest.importorskip("accelerate")
    want = tiny_model(use_clip_projector=True)
    want.save_pretrained(tmp_path / "clip")
    for path, expected in ((saved, tiny_model()), (tmp_path / "clip", want)):
        network = expected.model
        places = {f"model.{name}": "disk" for name, _ in network.named_children()}
        del places["model.levels"]
        places |= {f"model.levels.{i}": "cpu" if i % 2 else "disk" for i in range(4)}
        model = CLASSES["classifier"].from_pretrained(
            path, device_map=places, offload_folder=tmp_path / "off"
        )
        assert model.model.patch_embed.conv1.weight.device.type == "meta"
        with torch.no_grad():
            torch.testing.assert_close(model(pixels()).logits, expected(pixels()).logits)


def test_automatic_placement_never_splits_a_block():
    accelerate = pytest.importorskip("accelerate")
    with torch.device("meta"):
        model = CLASSES["classifier"](tiny_config(depths=[2, 2, 6, 2]))
    keep = list(model._no_split_modules)
    assert {"Stem", "Block", "Downsample", "CrossAttention"} == set(keep)
    size = sum(p.numel() * 4 for p in model.parameters())
    places = accelerate.infer_auto_device_map(
        model, max_memory={"cpu": 0.7 * size, "disk": size}, no_split_module_classes=keep
    )
    assert set(places.values()) == {"cpu", "disk"}
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    for place in places:
        parents = [place.rsplit(".", i)[0] for i in range(1, place.count(".") + 1)]
        assert not any(kinds[parent] in keep for parent in parents), place


# --- graphs ---------------------------------------------------------------------------------------


SHORT = {"depths": [1, 1], "groups": [1, 2]}


def test_export():
    if "Dim" not in dir(torch.export):
        pytest.skip("needs torch.export of torch 2.4 or newer")
    model = tiny_model(**SHORT)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        model, (), {"pixel_values": pixels()}, dynamic_shapes={"pixel_values": {0: batch}}
    )
    for size in (2, 3):
        got, want = program.module()(pixel_values=pixels(size)), model(pixels(size))
        assert list(got) == list(want)
        torch.testing.assert_close(got["logits"], want.logits)
        for ours, theirs in zip(got["hidden_states"], want.hidden_states):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", CLASSES)
def test_compile_in_one_graph(kind):
    model = tiny_model(kind, **SHORT)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        got, want = compiled(pixels()), model(pixels())
    assert list(got) == list(want)
    torch.testing.assert_close(got[next(iter(want))], want[next(iter(want))])


def test_compiled_training():
    gradients = []
    for compiled in (False, True):
        model = tiny_model(**SHORT).train()
        run = torch.compile(model, backend="eager") if compiled else model
        run(pixels(), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for got, want in zip(*gradients):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


# --- Trainer and pipeline -------------------------------------------------------------------------


class Colours(torch.utils.data.Dataset):
    """Images whose colour is their class."""

    def __init__(self, count=16):
        self.labels = torch.arange(count) % 3
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, 32, 32, generator=generator) * 0.3
        for image, label in zip(self.images, self.labels):
            image[label] += 2

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def test_trainer(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    shapes = []

    def accuracy(prediction):
        shapes.append(prediction.predictions.shape)
        return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=8, learning_rate=2e-3,
        use_cpu=True, report_to=[], save_steps=12, logging_steps=1, disable_tqdm=True,
        remove_unused_columns=False, gradient_checkpointing=True,
    )  # fmt: skip
    trainer = Trainer(
        tiny_model(num_labels=3), arguments, train_dataset=Colours(), eval_dataset=Colours(),
        compute_metrics=accuracy,
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.evaluate()["eval_accuracy"] == 1.0
    assert shapes == [(16, 3)]  # logits alone, not the feature maps
    again = CLASSES["classifier"].from_pretrained(tmp_path / "checkpoint-12")
    assert_same_weights(again, trainer.model)


def test_pipeline(saved, remote):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8))
    classify = pipeline("image-classification", model=str(saved), trust_remote_code=True)
    answers = classify([image, image], top_k=2)
    assert answers[0] == answers[1] and len(answers[0]) == 2
    processor = transformers.AutoImageProcessor.from_pretrained(saved)
    with torch.no_grad():
        logits = tiny_model()(**processor(image, return_tensors="pt")).logits
    best = logits.softmax(-1)[0].max(-1)
    assert answers[0][0]["label"] == "abcde"[best.indices]
    assert answers[0][0]["score"] == pytest.approx(best.values.item(), abs=1e-5)


# --- by itself ------------------------------------------------------------------------------------

RUN_BLOCKS = r"""
import pathlib, re, sys
text = pathlib.Path(sys.argv[1]).read_text()
for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
    print(f"--- {block.count(chr(10))} lines", flush=True)
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})
"""

ALONE = """
import sys
for name in ("ops_dcnv3", "timm", "yacs", "huggingface"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("tiny", trust_remote_code=True)
operator = type(model.model.levels[0].blocks[0].dcn).__module__
assert operator.endswith(".dcnv3_internimage"), operator
images = torch.load("images.pt")
with torch.no_grad():
    torch.save(model(images).logits, "logits.pt")
"""


def run_alone(script, cwd, *arguments):
    """A Python process that sees neither this repository nor another cache."""
    environment = {
        **os.environ, "HF_HOME": str(cwd / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [path for path in paths if path and root not in (Path(path), *Path(path).parents)]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended


def test_the_folder_needs_torch_and_transformers_only(saved, tmp_path):
    """The same numbers without ops_dcnv3 and timm; the scripts of its model card run as written."""
    (tmp_path / "tiny").symlink_to(saved)
    torch.save(pixels(), tmp_path / "images.pt")
    Image.new("RGB", (100, 70), "red").save(tmp_path / "photo.jpg")
    card = model_card("Tiny", "tiny", tiny_config(), 64, 1, "tiny.pth")
    (tmp_path / "README.md").write_text(card)
    ended = run_alone(ALONE + RUN_BLOCKS, tmp_path, "README.md")
    assert ended.stderr.count("InternImage runs its operator in plain PyTorch") == 1
    with torch.no_grad():
        torch.testing.assert_close(
            torch.load(tmp_path / "logits.pt"), tiny_model()(pixels()).logits
        )
    for part in ("'label'", "(1, 16, 16, 16), (1, 32, 8, 8)", "torch.Size([1, 128])"):
        assert part in ended.stdout


def test_the_scripts_of_the_documentation(saved, tmp_path, colours):
    """Every Python block of docs/huggingface.md runs as written, in a process of its own."""
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "digits-hf").symlink_to(saved)
    (tmp_path / "digits").symlink_to(colours)
    (tmp_path / "classification").symlink_to(root / "classification")
    Image.new("RGB", (100, 70), "red").save(tmp_path / "photo.png")
    page = root / "docs" / "huggingface.md"
    said = run_alone(RUN_BLOCKS, tmp_path, page).stdout
    assert said.count("---") == page.read_text().count("```python") == 6
    for part in (
        "(1, 16, 16, 16)\n",
        "(1, 128, 2, 2)\npooled (1, 128)",
        "(1, 21, 64, 64)",
        "[32, 128] 2\n",
        "'eval_accuracy': ",
    ):
        assert part in said
    assert set(os.listdir(tmp_path / "fine-tuned")) >= CODE
