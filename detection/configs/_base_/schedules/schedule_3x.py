# 36 epochs.
_base_ = "./schedule_1x.py"
lr_config = dict(step=[27, 33])
runner = dict(max_epochs=36)
