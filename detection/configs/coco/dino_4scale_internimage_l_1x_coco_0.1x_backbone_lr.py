# One tenth of the rate for the whole backbone instead of layer-wise rates.
_base_ = "./dino_4scale_internimage_l_1x_coco_layer_wise_lr.py"
optimizer = dict(
    _delete_=True,
    type="AdamW",
    lr=0.0001,
    weight_decay=0.05,
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
