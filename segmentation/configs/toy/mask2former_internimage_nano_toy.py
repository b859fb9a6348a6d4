# Mask2Former on a nano InternImage, 24 queries and 3 decoder layers. It starts from the UPerNet:
#   python train.py THIS --load-from work_dirs/upernet_internimage_nano_toy/latest.pth
_base_ = ["../_base_/models/mask2former_internimage_h.py", "./toy_ade.py"]
attention = dict(embed_dims=64, num_heads=4)
model = dict(
    backbone=dict(
        channels=16,
        depths=[1, 1, 2, 1],
        groups=[1, 2, 4, 8],
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        dw_kernel_size=None,
        res_post_norm=False,
        level2_post_norm=False,
        center_feature_scale=False,
    ),
    decode_head=dict(
        num_classes=6,
        in_channels=[16, 32, 64, 128],
        feat_channels=64,
        out_channels=64,
        num_queries=24,
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=8),
            encoder=dict(
                num_layers=1,
                transformerlayers=dict(
                    attn_cfgs=attention,
                    ffn_cfgs=dict(embed_dims=64, feedforward_channels=128),
                ),
            ),
            positional_encoding=dict(num_feats=32),
        ),
        positional_encoding=dict(num_feats=32),
        transformer_decoder=dict(
            num_layers=3,
            transformerlayers=dict(
                attn_cfgs=attention,
                ffn_cfgs=dict(embed_dims=64, feedforward_channels=128),
                feedforward_channels=128,
            ),
        ),
        loss_cls=dict(class_weight=[1.0] * 6 + [0.1]),
    ),
    train_cfg=dict(num_points=576),
)
data = dict(train=dict(pipeline={{_base_.mask_pipeline}}))
optimizer = dict(lr=1e-3)
optimizer_config = dict(grad_clip=dict(max_norm=1.0, norm_type=2))
runner = dict(max_iters=1500)
