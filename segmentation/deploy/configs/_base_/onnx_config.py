# The ONNX file. Opset 16 is the oldest with GridSample, of which the definition of DCNv3 is made.
onnx_config = dict(
    type="onnx",
    export_params=True,
    keep_initializers_as_inputs=False,
    opset_version=16,
    save_file="end2end.onnx",
    input_names=["input"],
    output_names=["output"],
    input_shape=None,  # (width, height) fixes the size; None takes what the test pipeline gives
    optimize=False,
)
