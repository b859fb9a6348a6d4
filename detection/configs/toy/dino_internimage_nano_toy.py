# DINO on a nano InternImage with 30 queries and three levels, for shapes on images of 128 pixels:
# 0.6 M parameters, 30 epochs take about 23 minutes of a CPU core.
_base_ = ["../_base_/models/dino_4scale_internimage.py", "./toy_coco.py"]
attention = dict(embed_dims=64, num_heads=4, num_levels=3)
ffn = dict(type="FFN", embed_dims=64, num_fcs=2, act_cfg=dict(type="ReLU", inplace=True))
model = dict(
    backbone=dict(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], mlp_ratio=2.0),
    neck=dict(in_channels=[32, 64, 128], out_channels=64, num_outs=3, norm_cfg=dict(num_groups=8)),
    bbox_head=dict(
        num_query=30,
        num_classes=5,
        in_channels=128,
        dn_cfg=dict(group_cfg=dict(num_dn_queries=30)),
        transformer=dict(
            num_feature_levels=3,
            two_stage_num_proposals=30,
            encoder=dict(
                num_layers=2,
                transformerlayers=dict(attn_cfgs=attention, ffn_cfgs=ffn, feedforward_channels=256),
            ),
            decoder=dict(
                num_layers=2,
                transformerlayers=dict(
                    attn_cfgs=[
                        dict(type="MultiheadAttention", embed_dims=64, num_heads=4, dropout=0.0),
                        dict(type="MultiScaleDeformableAttention", dropout=0.0, **attention),
                    ],
                    ffn_cfgs=ffn,
                    feedforward_channels=256,
                ),
            ),
        ),
        positional_encoding=dict(num_feats=32),
    ),
    test_cfg=dict(max_per_img=20),
)
data = dict(train=dict(pipeline={{_base_.box_pipeline}}))
optimizer = dict(type="AdamW", lr=1e-3, weight_decay=1e-4)
optimizer_config = dict(grad_clip=dict(max_norm=0.1, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing",
    warmup="linear",
    warmup_iters=100,
    warmup_ratio=0.01,
    min_lr_ratio=0.01,
)
runner = dict(type="EpochBasedRunner", max_epochs=30)
evaluation = dict(interval=2, metric="bbox", save_best="bbox_mAP")
