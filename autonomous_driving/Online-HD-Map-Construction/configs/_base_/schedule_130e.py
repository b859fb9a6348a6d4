# 130 epochs with two steps; everything below the bird's-eye view learns at a tenth of the rate.
optimizer = dict(
    type="AdamW",
    lr=1e-3,
    weight_decay=0.01,
    paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1)}),
)
optimizer_config = dict(grad_clip=dict(max_norm=3.5, norm_type=2))
lr_config = dict(
    policy="step", step=[100, 120], warmup="linear", warmup_iters=400, warmup_ratio=0.1
)
runner = dict(type="EpochBasedRunner", max_epochs=130)
