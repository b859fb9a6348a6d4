# The decoder of SegFormer (arXiv 2105.15203) on InternImage, for the 19 classes of Cityscapes; a
# config adds the size of the backbone.
model = dict(
    type="EncoderDecoder",
    backbone=dict(
        type="InternImage",
        core_op="DCNv3",
        mlp_ratio=4.0,
        norm_layer="LN",
        layer_scale=1.0,
        offset_scale=2.0,
        post_norm=True,
        with_cp=False,
        out_indices=(0, 1, 2, 3),
    ),
    decode_head=dict(
        type="SegformerHead",
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
