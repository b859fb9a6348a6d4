# Segmentors; the file gives the label of every pixel of its input.
_base_ = ["../_base_/onnx_config.py"]
codebase_config = dict(type="mmseg", task="Segmentation", with_argmax=True)
