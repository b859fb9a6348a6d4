# 12 epochs of AdamW on 8 processes x 2 images; a config adds the depths for the layer-wise rates.
_base_ = "../default_runtime.py"
optimizer = dict(
    type="AdamW",
    lr=0.0001,
    weight_decay=0.05,
    constructor="CustomLayerDecayOptimizerConstructor",
)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy="step", warmup="linear", warmup_iters=500, warmup_ratio=0.001, step=[8, 11])
runner = dict(type="EpochBasedRunner", max_epochs=12)
