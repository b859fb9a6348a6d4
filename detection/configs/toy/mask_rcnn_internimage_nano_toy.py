# Mask R-CNN on a nano InternImage, 0.9 M parameters: 10 epochs take about 8 minutes of a CPU core.
_base_ = ["../_base_/models/mask_rcnn_internimage_fpn.py", "./toy_coco.py"]
model = dict(
    backbone=dict(
        channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], mlp_ratio=2.0, layer_scale=None
    ),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=48, num_outs=4),
    rpn_head=dict(
        in_channels=48,
        feat_channels=48,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),  # sides of 16 to 128 pixels
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2),
            out_channels=48,
            featmap_strides=[4, 8, 16],
            finest_scale=28,
        ),
        bbox_head=dict(in_channels=48, fc_out_channels=192, num_classes=5),
        mask_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2),
            out_channels=48,
            featmap_strides=[4, 8, 16],
            finest_scale=28,
        ),
        mask_head=dict(num_convs=2, in_channels=48, conv_out_channels=32, num_classes=5),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=20)),
)
optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.05)
optimizer_config = dict(grad_clip=dict(max_norm=5.0, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing",
    warmup="linear",
    warmup_iters=100,
    warmup_ratio=0.01,
    min_lr_ratio=0.01,
)
runner = dict(type="EpochBasedRunner", max_epochs=10)
evaluation = dict(interval=2, metric=["bbox", "segm"], save_best="bbox_mAP")
