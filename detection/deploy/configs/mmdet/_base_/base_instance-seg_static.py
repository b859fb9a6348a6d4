# Detectors with masks, which are returned as they leave the mask head (28x28) and are pasted into
# the image afterwards.
_base_ = ["./base_static.py"]
onnx_config = dict(output_names=["dets", "labels", "masks"])
codebase_config = dict(post_processing=dict(export_postprocess_mask=False))
