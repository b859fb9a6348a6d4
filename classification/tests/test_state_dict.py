"""Keys, shapes, types and order of the state dicts of the released models."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from config import load_config_file
from models import InternImage, build_model

HERE = Path(__file__).parent
MANIFESTS = json.loads(gzip.decompress((HERE / "data" / "state_dicts.json.gz").read_bytes()))


@pytest.mark.parametrize("name", MANIFESTS)
def test_state_dict(name):
    manifest = MANIFESTS[name]
    with torch.device("meta"):
        if "config" in manifest:
            path = HERE.parent / "configs" / manifest["config"]
            opts = [str(value) for value in manifest["opts"]]
            model = build_model(load_config_file(path, opts))
        else:
            model = InternImage(**manifest["kwargs"])
    got = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in model.state_dict().items()
    ]
    assert got == manifest["keys"]
    assert sum(p.numel() for p in model.parameters()) == manifest["params"]
