# 12 epochs for DINO: a smaller weight decay, clipped gradients, one step down.
_base_ = "./schedule_1x.py"
optimizer = dict(weight_decay=0.0001)
optimizer_config = dict(_delete_=True, grad_clip=dict(max_norm=0.1, norm_type=2))
lr_config = dict(step=[11])
