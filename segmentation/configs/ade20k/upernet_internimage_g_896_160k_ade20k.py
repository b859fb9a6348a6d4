_base_ = [
    "../_base_/models/upernet_internimage.py",
    "../_base_/datasets/ade20k_896x896.py",
    "../_base_/schedules/schedule_160k.py",
]
pretrained = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_g_pretrainto22k_384.pth"
)
model = dict(
    backbone=dict(
        channels=512,
        depths=[2, 2, 48, 4],
        groups=[16, 32, 64, 128],
        drop_path_rate=0.5,
        layer_scale=None,
        post_norm=True,
        dw_kernel_size=5,
        res_post_norm=False,
        level2_post_norm=True,
        level2_post_norm_block_ids=[5, 11, 17, 23, 29, 35, 41, 47],
        center_feature_scale=True,
        with_cp=True,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
    decode_head=dict(in_channels=[512, 1024, 2048, 4096]),
    auxiliary_head=dict(in_channels=2048),
)
optimizer = dict(
    lr=2e-5,
    paramwise_cfg=dict(
        num_layers=56, layer_decay_rate=0.95, depths=[2, 2, 48, 4], offset_lr_scale=1.0
    ),
)
optimizer_config = dict(grad_clip=dict(max_norm=0.1, norm_type=2))
