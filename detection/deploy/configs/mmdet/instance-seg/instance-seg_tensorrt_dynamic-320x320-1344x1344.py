_base_ = [
    "../_base_/base_instance-seg_dynamic.py",
    "../../_base_/backends/tensorrt_dynamic-320x320-1344x1344.py",
]
