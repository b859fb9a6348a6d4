_base_ = ["./segmentation_static.py", "../_base_/backends/tensorrt.py"]
onnx_config = dict(input_shape=(2048, 1024))
shape = [1, 3, 1024, 2048]
backend_config = dict(
    model_inputs=[
        dict(input_shapes=dict(input=dict(min_shape=shape, opt_shape=shape, max_shape=shape)))
    ],
)
