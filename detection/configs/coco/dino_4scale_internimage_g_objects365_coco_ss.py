_base_ = "./dino_4scale_internimage_h_objects365_coco_ss.py"
ffn = dict(
    type="EfficientFFN",
    embed_dims=256,
    feedforward_channels=2048,
    num_fcs=2,
    ffn_drop=0.0,
    use_checkpoint=True,
    act_cfg=dict(type="ReLU", inplace=True),
)
model = dict(
    backbone=dict(
        channels=512,
        depths=[2, 2, 48, 4],
        groups=[16, 32, 64, 128],
        post_norm=True,
        res_post_norm=False,
        level2_post_norm_block_ids=[5, 11, 17, 23, 29, 35, 41, 47],
    ),
    neck=dict(in_channels=[1024, 2048, 4096]),
    bbox_head=dict(
        transformer=dict(
            encoder=dict(transformerlayers=dict(ffn_cfgs=ffn)),
            decoder=dict(transformerlayers=dict(ffn_cfgs=ffn)),
        )
    ),
)
optimizer = dict(paramwise_cfg=dict(num_layers=56, depths=[2, 2, 48, 4]))
