"""Loads the plugin into TensorRT's registry and prints what it finds there as JSON.

    python registry_check.py LIBRARY

Run by test_build.py. No Runtime is made: TensorRT crashes there on a machine without a driver.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

LOADER = Path(__file__).resolve().parents[2] / "classification" / "models" / "tensorrt_plugin.py"
INTEGERS = {
    **{"kernel_h": 3, "kernel_w": 3, "stride_h": 2, "stride_w": 1, "pad_h": 1, "pad_w": 1},
    **{"dilation_h": 1, "dilation_w": 1, "group": 2, "group_channels": 8, "remove_center": 1},
    "im2col_step": 256,
}


def loader():
    """The project's loader, without the package around it, which imports PyTorch."""
    spec = importlib.util.spec_from_file_location("tensorrt_plugin", LOADER)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(library: str) -> None:
    plugin_loader = loader()
    trt = plugin_loader.import_tensorrt()
    path = plugin_loader.load_plugin(library)
    assert path == Path(library), path
    creator = trt.get_plugin_registry().get_creator(*plugin_loader.PLUGIN)
    held = []  # TensorRT keeps pointers into the arrays

    def create(**changes):
        fields = []
        for name, value in {**INTEGERS, "offset_scale": 2.0, **changes}.items():
            is_float = isinstance(value, float)
            held.append(np.array([value], np.float32 if is_float else np.int32))
            kind = trt.PluginFieldType.FLOAT32 if is_float else trt.PluginFieldType.INT32
            fields.append(trt.PluginField(name, held[-1], kind))
        collection = trt.PluginFieldCollection(fields)
        return creator.create_plugin("node", collection, trt.TensorRTPhase.BUILD)

    plugin = create()
    kinds = trt.PluginCapabilityType.__members__
    found = {name: plugin.get_capability_interface(kind) for name, kind in kinds.items()}
    core, build = found["CORE"], found["BUILD"]
    facts = {
        "tensorrt": trt.__version__,
        "creator": [creator.name, creator.plugin_version, creator.plugin_namespace],
        "fields": len(creator.field_names),
        "core": [core.plugin_name, core.plugin_version, core.plugin_namespace],
        "build": [build.num_outputs, build.timing_cache_id],
        "capabilities": [name for name, capability in found.items() if capability is not None],
        "refused": create(stride_h=0) is None,
        "again": plugin_loader.load_plugin(library),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1])
