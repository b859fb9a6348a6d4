# 24 epochs with a cosine decay; the optimizer is that of the config.
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing",
    warmup="linear",
    warmup_iters=500,
    warmup_ratio=1.0 / 3,
    min_lr_ratio=1e-3,
)
runner = dict(type="EpochBasedRunner", max_epochs=24)
evaluation = dict(interval=1, metric="mIoU", save_best="mIoU", rule="greater")
