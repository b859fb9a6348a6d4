# 20000 iterations of fine-tuning for the H and G detectors, at a constant rate.
_base_ = "../default_runtime.py"
optimizer = dict(
    type="AdamW",
    lr=0.0001,
    weight_decay=0.0001,
    constructor="CustomLayerDecayOptimizerConstructor",
    paramwise_cfg=dict(
        num_layers=50, layer_decay_rate=0.94, depths=[6, 6, 32, 6], offset_lr_scale=1e-3
    ),
)
optimizer_config = dict(grad_clip=dict(max_norm=0.1, norm_type=2))
lr_config = dict(policy="step", warmup="linear", warmup_iters=500, warmup_ratio=0.001, step=[])
runner = dict(type="IterBasedRunner", max_iters=20000)
checkpoint_config = dict(interval=200, max_keep_ckpts=3)
