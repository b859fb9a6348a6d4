# VectorMapNet on InternImage-S. Published result on the Argoverse 2 validation frames of the online
# HD map challenge: mAP 49.35 (ped_crossing 45.05, divider 56.78, boundary 46.22).
_base_ = [
    "./_base_/argoverse2.py",
    "./_base_/schedule_130e.py",
    "./_base_/default_runtime.py",
]
embed_dims = 256
model = dict(
    type="VectorMapNet",
    backbone=dict(
        type="IPMEncoder",
        img_backbone=dict(
            type="InternImage",
            core_op="DCNv3",
            channels=80,
            depths=[4, 4, 21, 4],
            groups=[5, 10, 20, 40],
            mlp_ratio=4.0,
            drop_path_rate=0.3,
            norm_layer="LN",
            layer_scale=1.0,
            offset_scale=1.0,
            post_norm=True,
            with_cp=False,
            out_indices=(0, 1, 2, 3),
            init_cfg=dict(
                type="Pretrained",
                checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/"
                "internimage_s_1k_224.pth",
            ),
        ),
        img_neck=dict(
            type="FPN",
            in_channels=[80, 160, 320, 640],
            out_channels=128,
            num_outs=4,
            norm_cfg=dict(type="BN2d"),
        ),
        in_channels=128,
        out_channels=128,
        num_levels=4,
        heights=(-1.1, 0.0, 0.5, 1.1),
        roi_size={{_base_.roi_size}},
        grid_size=(200, 100),
        num_cams=7,
    ),
    neck=dict(in_channels=128, mid_channels=64, out_channels=128),
    head=dict(
        type="DGHead",
        roi_size={{_base_.roi_size}},
        augmentation=dict(p=0.3, scale=0.01),
        det_net=dict(
            type="MapElementDetector",
            in_channels=128,
            num_classes=3,
            num_query=120,
            canvas_size={{_base_.canvas_size}},
            max_lines=35,
            transformer=dict(
                type="DeformableDetrTransformer_",
                encoder=dict(type="PlaceHolderEncoder", embed_dims=embed_dims),
                decoder=dict(
                    type="DeformableDetrTransformerDecoder_",
                    num_layers=6,
                    transformerlayers=dict(
                        type="BaseTransformerLayer",
                        attn_cfgs=[
                            dict(
                                type="MultiheadAttention",
                                embed_dims=embed_dims,
                                num_heads=8,
                                attn_drop=0.1,
                                proj_drop=0.1,
                            ),
                            dict(
                                type="MultiScaleDeformableAttention",
                                embed_dims=embed_dims,
                                num_heads=8,
                                num_levels=1,
                            ),
                        ],
                        ffn_cfgs=dict(
                            type="FFN",
                            embed_dims=embed_dims,
                            feedforward_channels=512,
                            ffn_drop=0.1,
                        ),
                        operation_order=("norm", "self_attn", "norm", "cross_attn", "norm", "ffn"),
                    ),
                ),
            ),
            assigner=dict(
                type="HungarianLinesAssigner",
                cost=dict(
                    type="MapQueriesCost",
                    cls_cost=dict(type="FocalLossCost", weight=2.0),
                    reg_cost=dict(type="BBoxCostC", weight=0.1),
                    iou_cost=dict(type="IoUCostC", iou_mode="giou", weight=1.0),
                ),
            ),
            loss_cls=dict(
                type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0
            ),
            loss_reg=dict(type="LinesLoss", loss_weight=0.1, beta=0.5),
        ),
        gen_net=dict(
            type="PolylineGenerator",
            in_channels=128,
            num_classes=3,
            canvas_size={{_base_.canvas_size}},
            decoder=dict(
                num_layers=6,
                embed_dims=embed_dims,
                num_heads=8,
                feedforward_dims=512,
                dropout=0.2,
            ),
        ),
    ),
    # top_p=0 always takes the most likely token.
    test_cfg=dict(max_points=64, top_p=0.9, seed=0),
)
