_base_ = "./cascade_internimage_l_fpn_1x_coco.py"
data = dict(train=dict(pipeline={{_base_.multi_scale_pipeline}}))
optimizer = dict(lr=0.0002, paramwise_cfg=dict(layer_decay_rate=0.9, offset_lr_scale=0.01))
lr_config = dict(step=[27, 33])
runner = dict(max_epochs=36)
custom_hooks = [dict(type="ExpMomentumEMAHook", momentum=0.0001, priority=49)]
