# The same sum computed by another operator; weights of the plain config load.
_base_ = "./mask_rcnn_internimage_t_fpn_1x_coco.py"
model = dict(backbone=dict(use_dcn_v4_op=True))
