"""config.py: precedence, BASE files, messages, the shipped YAML files, mixed precision."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from config import (
    ConfigError,
    add_arguments,
    amp_dtype,
    config_from_dict,
    config_to_dict,
    default_config,
    get_config,
    get_value,
    is_typed,
    load_config_file,
)

ROOT = Path(__file__).resolve().parents[1]
FACTS = json.loads((ROOT / "tests/data/configs.json").read_text())
DEFAULTS = FACTS.pop("defaults")


def parse(*argv):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return get_config(parser.parse_args([str(a) for a in argv]))


@pytest.fixture
def yaml_file(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# ------------------------------------------------------------------------------- defaults, files
def test_every_original_key_keeps_its_default():
    config = default_config()
    for key, value in DEFAULTS.items():
        assert get_value(config, key) == value, key
        assert type(get_value(config, key)) is type(value), key


@pytest.mark.parametrize("name", sorted(FACTS))
def test_shipped_yaml_gives_exactly_the_documented_values(name):
    config = load_config_file(ROOT / "configs" / name)
    for key, default in DEFAULTS.items():
        if key != "OUTPUT":
            assert get_value(config, key) == FACTS[name].get(key, default), key
    assert f"output/{Path(name).stem}" == config.OUTPUT


def test_every_shipped_yaml_is_covered_and_has_a_header():
    files = {str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml")}
    files = {name for name in files if not name.startswith("accelerate")}  # not of this program
    assert files == set(FACTS) | {"toy/internimage_nano_digits.yaml"}
    for name in files:
        model = "FlashInternImage-" if name.startswith("flash_") else "InternImage-"
        assert (ROOT / "configs" / name).read_text().startswith(f"# {model}")


def test_toy_yaml_never_flips_or_mixes_digits():
    config = load_config_file(ROOT / "configs/toy/internimage_nano_digits.yaml")
    aug = config.AUG
    assert (aug.HFLIP, aug.MIXUP, aug.CUTMIX, aug.REPROB) == (0, 0, 0, 0)
    assert config.DATA.DATASET == "folder" and config.DATA.IMG_SIZE == 32
    net = config.MODEL.INTERN_IMAGE
    assert [net.CHANNELS * 2**i // g for i, g in enumerate(net.GROUPS)] == [16] * 4


# ------------------------------------------------------------------------------------ precedence
FLAG_CASES = [
    # key, text for YAML and --opts, typed flag, expected from YAML / --opts / flag
    ("AMP_OPT_LEVEL", "O0", "O2", ["--amp-opt-level", "O1"], ("O0", "O2", "O1")),
    ("DATA.CACHE_MODE", "full", "no", ["--cache-mode", "part"], ("full", "no", "part")),
    ("TRAIN.ACCUMULATION_STEPS", "4", "8", ["--accumulation-steps", 1], (4, 8, 1)),
    ("SAVE_CKPT_NUM", "3", "4", ["--save-ckpt-num", 1], (3, 4, 1)),
    ("DATA.BATCH_SIZE", "7", "9", ["--batch-size", 11], (7, 9, 11)),
    ("DATA.ZIP_MODE", "false", "False", ["--zip"], (False, False, True)),
    ("TRAIN.USE_CHECKPOINT", "true", "False", ["--use-checkpoint"], (True, False, True)),
    ("DATA.DATASET", "inat18", "folder", ["--dataset", "imagenet22K"], None),
    ("TAG", "a", "b", ["--tag", "c"], ("a", "b", "c")),
    ("DEVICE", "cpu", "cuda", ["--device", "cuda:1"], ("cpu", "cuda", "cuda:1")),
    ("EVAL_MODE", "false", "False", ["--eval"], (False, False, True)),
    ("THROUGHPUT_MODE", "false", "False", ["--throughput"], (False, False, True)),
    ("TRAIN.OPTIMIZER.USE_ZERO", "false", "False", ["--use-zero"], (False, False, True)),
    ("COMPILE", "false", "False", ["--compile"], (False, False, True)),
    ("MODEL.RESUME", "a.pth", "b.pth", ["--resume", "c.pth"], ("a.pth", "b.pth", "c.pth")),
    ("MODEL.PRETRAINED", "a.pth", "b.pth", ["--pretrained", "c.pth"], ("a.pth", "b.pth", "c.pth")),
    ("DATA.DATA_PATH", "a", "b", ["--data-path", "c"], ("a", "b", "c")),
]


@pytest.mark.parametrize("key, in_yaml, in_opts, flag, expected", FLAG_CASES)
def test_yaml_then_opts_then_typed_flag(yaml_file, key, in_yaml, in_opts, flag, expected):
    expected = expected or (in_yaml, in_opts, flag[1])
    *parents, leaf = key.split(".")
    text = "".join("  " * i + p + ":\n" for i, p in enumerate(parents))
    path = yaml_file(f"{text}{'  ' * len(parents)}{leaf}: {in_yaml}\n")
    assert get_value(parse("--cfg", path), key) == expected[0]
    assert get_value(parse("--cfg", path, "--opts", key, in_opts), key) == expected[1]
    assert get_value(parse("--cfg", path, *flag, "--opts", key, in_opts), key) == expected[2]
    assert get_value(parse("--cfg", path, *flag), key) == expected[2]


def test_name_and_output_follow_the_yaml_stem(yaml_file):
    path = yaml_file("OUTPUT: here\n", "my_run.v2.yaml")
    assert parse("--cfg", path).MODEL.NAME == "my_run.v2"
    assert parse("--cfg", path).OUTPUT == "here/my_run.v2"
    assert parse("--cfg", path, "--output", "there").OUTPUT == "there/my_run.v2"
    assert parse("--cfg", yaml_file("", "empty.yaml")).OUTPUT == "output/empty"


def test_a_typed_zero_counts_as_typed(yaml_file):
    path = yaml_file("TRAIN:\n  ACCUMULATION_STEPS: 4\n")
    assert parse("--cfg", path, "--accumulation-steps", 0).TRAIN.ACCUMULATION_STEPS == 0
    with pytest.raises(ConfigError, match="DATA.BATCH_SIZE must be at least 1, got 0"):
        parse("--cfg", path, "--batch-size", 0)


def test_amp_dtype_flag_sets_both_keys(yaml_file):
    path = yaml_file("AMP_OPT_LEVEL: O0\n")
    config = parse("--cfg", path, "--amp-dtype", "bfloat16")
    assert (config.AMP_TYPE, config.AMP_OPT_LEVEL) == ("bfloat16", "O1")
    config = parse("--cfg", path, "--amp-dtype", "none")
    assert (config.AMP_TYPE, config.AMP_OPT_LEVEL) == ("none", "O0")
    with pytest.raises(ConfigError, match="contradicts --amp-dtype bfloat16"):
        parse("--cfg", path, "--amp-dtype", "bfloat16", "--amp-opt-level", "O0")


def test_repeated_opts_add_up_and_typed_keys_are_known(yaml_file):
    path = yaml_file("MODEL:\n  NUM_CLASSES: 5\n")
    config = parse(
        "--cfg", path, "--opts", "SEED", 3, "--batch-size", 2, "--opts", "TRAIN.EPOCHS", 4
    )
    assert (config.SEED, config.TRAIN.EPOCHS) == (3, 4)
    assert is_typed(config, "SEED") and is_typed(config, "DATA.BATCH_SIZE")
    assert not is_typed(config, "MODEL.NUM_CLASSES") and not is_typed(config, "TAG")
    assert is_typed(config.clone(), "SEED")


# ------------------------------------------------------------------------------------- values
def test_values_are_read_as_literals_and_brought_to_the_type_of_the_default(yaml_file):
    path = yaml_file(
        "MODEL:\n  INTERN_IMAGE:\n    LAYER_SCALE: 1e-5\n    DW_KERNEL_SIZE: None\n"
        "TRAIN:\n  BASE_LR: 5e-4\n  CLIP_GRAD: None\n  OPTIMIZER:\n    BETAS: (0.9, 0.95)\n"
    )
    config = load_config_file(
        path,
        [
            "AUG.CUTMIX_MINMAX",
            "[0.2,0.4]",
            "TRAIN.WEIGHT_DECAY",
            "1",
            "TAG",
            "12",
            "EVAL_MODE",
            "true",
        ],
    )
    assert config.MODEL.INTERN_IMAGE.LAYER_SCALE == 1e-5
    assert config.MODEL.INTERN_IMAGE.DW_KERNEL_SIZE is None
    assert config.TRAIN.BASE_LR == 5e-4 and config.TRAIN.CLIP_GRAD is None
    assert config.TRAIN.OPTIMIZER.BETAS == [0.9, 0.95] and config.AUG.CUTMIX_MINMAX == [0.2, 0.4]
    assert config.TRAIN.WEIGHT_DECAY == 1.0 and isinstance(config.TRAIN.WEIGHT_DECAY, float)
    assert config.TAG == "12" and config.EVAL_MODE is True


@pytest.mark.parametrize("null", ["null", "None", "''"])
def test_null_path_means_no_path(yaml_file, null):
    assert load_config_file(yaml_file(f"MODEL:\n  RESUME: {null}\n")).MODEL.RESUME == ""


# ------------------------------------------------------------------------------------- BASE
def test_base_files_are_recursive_and_relative_to_their_file(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/root.yaml").write_text("SEED: 1\nDATA:\n  IMG_SIZE: 64\n  BATCH_SIZE: 2\n")
    (tmp_path / "mid.yaml").write_text("BASE: [deep/root.yaml]\nDATA:\n  IMG_SIZE: 96\n")
    (tmp_path / "leaf.yaml").write_text("BASE: mid.yaml\nDATA:\n  BATCH_SIZE: 5\n")
    monkeypatch.chdir("/")
    config = load_config_file(tmp_path / "leaf.yaml")
    assert (config.SEED, config.DATA.IMG_SIZE, config.DATA.BATCH_SIZE) == (1, 96, 5)
    assert config.MODEL.NAME == "leaf" and config.BASE == ["mid.yaml"]


def test_base_cycle_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("BASE: [b.yaml]\n")
    (tmp_path / "b.yaml").write_text("BASE: [a.yaml]\n")
    with pytest.raises(ConfigError, match=r"a\.yaml -> b\.yaml -> a.yaml"):
        load_config_file(tmp_path / "a.yaml")


def test_same_base_twice_is_no_cycle(tmp_path):
    (tmp_path / "root.yaml").write_text("SEED: 1\n")
    (tmp_path / "a.yaml").write_text("BASE: [root.yaml]\nSEED: 2\n")
    (tmp_path / "b.yaml").write_text("BASE: [a.yaml, root.yaml]\n")
    assert load_config_file(tmp_path / "b.yaml").SEED == 1


# ------------------------------------------------------------------------------------ messages
@pytest.mark.parametrize(
    "text, message",
    [
        (
            "DATA:\n  BATCHSIZE: 3\n",
            r"run.yaml: unknown .*'DATA.BATCHSIZE', did you mean 'DATA.BATCH_SIZE'",
        ),
        ("BATCH_SIZE: 3\n", "did you mean 'DATA.BATCH_SIZE'"),
        ("DATA: 3\n", "DATA is a section"),
        ("MODEL:\n  TYPE: intern_imag\n", "did you mean 'intern_image'"),
        ("DATA:\n  DATASET: imagnet\n", "did you mean 'imagenet'"),
        ("DATA:\n  IMG_SIZE: big\n", "DATA.IMG_SIZE needs an integer, got 'big'"),
        ("TRAIN:\n  EPOCHS: 0\n", "TRAIN.EPOCHS must be at least 1, got 0"),
        ("TRAIN:\n  ACCUMULATION_STEPS: -3\n", "ACCUMULATION_STEPS must be at least 0, got -3"),
        ("TRAIN:\n  LR_SCHEDULER:\n    DECAY_EPOCHS: 0\n", "DECAY_EPOCHS must be at least 1"),
        ("TRAIN:\n  EMA:\n    DECAY: 1.5\n", "EMA.DECAY must lie between 0 and 1, got 1.5"),
        ("MODEL:\n  LABEL_SMOOTHING: -0.1\n", "LABEL_SMOOTHING must lie between 0 and 1"),
        ("AUG:\n  MEAN: [0.5]\n", r"AUG.MEAN needs 3 entries, got \[0.5\]"),
        ("DATA:\n  ZIP_MODE: 3\n", "needs true or false"),
        ("TRAIN:\n  LR_SCHEDULER:\n    NAME: cosin\n", "did you mean 'cosine'"),
        ("AUG:\n  CUTMIX_MINMAX: [0.5, 0.2]\n", "low, high"),
        ("MODEL:\n  INTERN_IMAGE:\n    DEPTHS: [1, 1]\n", "one entry per stage"),
        (
            "MODEL:\n  TYPE: flash_intern_image\n  FLASH_INTERN_IMAGE:\n    GROUPS: [4]\n",
            "MODEL.FLASH_INTERN_IMAGE.DEPTHS .*one entry per stage",
        ),
        (
            "MODEL:\n  TYPE: flash_intern_image\n  INTERN_IMAGE:\n    POST_NORM: true\n",
            "MODEL.INTERN_IMAGE is set, but .* flash_intern_image reads MODEL.FLASH_INTERN_IMAGE",
        ),
        (
            "MODEL:\n  FLASH_INTERN_IMAGE:\n    POST_NORM: true\n",
            "MODEL.FLASH_INTERN_IMAGE is set, but .* intern_image reads MODEL.INTERN_IMAGE",
        ),
        ("MODEL:\n  FLASH_INTERN_IMAGE:\n    CORE_OP: DCNv3\n", "'DCNv3', which does not exist"),
        ("DEVICE: gpu\n", "auto, cpu, cuda, cuda:N"),
        ("- a\n- b\n", "must hold 'KEY: value' pairs"),
        ("a: [\n", "not valid YAML"),
        ("BASE: [gone.yaml]\n", "gone.yaml does not exist"),
    ],
)
def test_bad_yaml_says_what_is_wrong(yaml_file, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config_file(yaml_file(text))


def test_bad_opts_say_what_is_wrong(yaml_file):
    path = yaml_file("")
    with pytest.raises(ConfigError, match="odd count of 3"):
        parse("--cfg", path, "--opts", "SEED", "1", "TAG")
    with pytest.raises(ConfigError, match=r"--opts: unknown .*did you mean 'TRAIN.BASE_LR'"):
        parse("--cfg", path, "--opts", "TRAIN.BASELR", "1")
    with pytest.raises(ConfigError, match="--opts: SEED needs an integer"):
        parse("--cfg", path, "--opts", "SEED", "x")


def test_missing_yaml_names_the_nearest():
    with pytest.raises(ConfigError, match=r"does not exist, did you mean .*internimage_t_1k_224"):
        load_config_file(ROOT / "configs/internimage_t_1k.yaml")


def test_config_is_frozen(yaml_file):
    with pytest.raises(AttributeError):
        load_config_file(yaml_file("")).SEED = 1


# --------------------------------------------------------------------------------- dict, dtype
def test_dict_round_trip_is_plain_and_survives_a_checkpoint(tmp_path):
    config = load_config_file(ROOT / "configs/internimage_g_22kto1k_512.yaml")
    tree = config_to_dict(config)
    assert type(tree) is dict and type(tree["MODEL"]["INTERN_IMAGE"]) is dict
    torch.save({"config": tree}, tmp_path / "c.pth")
    loaded = torch.load(tmp_path / "c.pth", weights_only=True)["config"]
    again = config_from_dict(loaded)
    assert again == config and again.is_frozen()
    tree["MODEL"]["INTERN_IMAGE"]["DEPTHS"].append(9)
    assert config.MODEL.INTERN_IMAGE.DEPTHS == [2, 2, 48, 4]
    with pytest.raises(ConfigError, match=r"checkpoint: unknown .*'DATA.NEW_KEY'"):
        config_from_dict({"DATA": {"NEW_KEY": 1}})


@pytest.mark.parametrize(
    "level, dtype, device, expected",
    [
        ("", "float16", "cpu", None),
        ("", "float16", "cuda:0", torch.float16),
        ("", "bfloat16", "cpu", torch.bfloat16),
        ("", "none", "cuda", None),
        ("O0", "float16", "cuda", None),
        ("O0", "bfloat16", "cpu", None),
        ("O1", "float16", "cuda", torch.float16),
        ("O2", "bfloat16", "cuda", torch.bfloat16),
        ("O1", "none", "cpu", None),
    ],
)
def test_amp_dtype_table(yaml_file, level, dtype, device, expected):
    config = load_config_file(yaml_file(""), ["AMP_OPT_LEVEL", level, "AMP_TYPE", dtype])
    assert amp_dtype(config, torch.device(device)) is expected
    assert amp_dtype(config, device) is expected


def test_float16_asked_for_on_cpu_is_refused_with_a_way_out(yaml_file):
    config = parse("--cfg", yaml_file(""), "--amp-dtype", "float16")
    with pytest.raises(ConfigError, match="--amp-dtype bfloat16"):
        amp_dtype(config, "cpu")
