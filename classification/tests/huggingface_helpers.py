"""Shared by the tests of classification/huggingface: tiny models, a converted folder."""

from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="pip install transformers")
pytest.importorskip("safetensors", reason="pip install safetensors")

import torch

import huggingface

CODE = {path.name for path in Path(huggingface.__file__).parent.glob("*_internimage.py")}
TINY = {"channels": 16, "depths": [1, 2, 1, 1], "groups": [1, 2, 4, 8]}
CLASSES = {
    "model": huggingface.InternImageModel,
    "classifier": huggingface.InternImageForImageClassification,
    "backbone": huggingface.InternImageBackbone,
}
IS_4 = transformers.__version__.startswith("4.")


def tiny_config(**changes):
    return huggingface.InternImageConfig(**{**TINY, "num_labels": 5, **changes})


def tiny_model(kind="classifier", seed=0, **changes):
    """A model in evaluation mode whose offsets and masks are not zero."""
    torch.manual_seed(seed)
    model = CLASSES[kind](tiny_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".dcn.offset." in name or ".dcn.mask." in name:
                parameter.normal_(0.0, 0.1)
    return model.eval()


def pixels(batch=2, size=64, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def assert_same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert list(first) == list(second)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
