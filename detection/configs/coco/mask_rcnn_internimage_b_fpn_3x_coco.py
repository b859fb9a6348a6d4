_base_ = "./mask_rcnn_internimage_b_fpn_1x_coco.py"
data = dict(train=dict(pipeline={{_base_.multi_scale_pipeline}}))
lr_config = dict(step=[27, 33])
runner = dict(max_epochs=36)
