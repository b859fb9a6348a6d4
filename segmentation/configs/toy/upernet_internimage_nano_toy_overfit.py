# Eight images, learnt by heart and evaluated on themselves: there is no ceiling on the way.
_base_ = "./upernet_internimage_nano_toy.py"
# python ../tools/toy_ade.py --train 8 --val 1 --output data/toy_ade_overfit
same = dict(
    data_root="data/toy_ade_overfit", img_dir="images/training", ann_dir="annotations/training"
)
model = dict(decode_head=dict(dropout_ratio=0.0), auxiliary_head=dict(dropout_ratio=0.0))
data = dict(train=dict(**same, pipeline={{_base_.plain_pipeline}}), val=same, test=same)
optimizer = dict(weight_decay=0.0)
runner = dict(max_iters=1000)
checkpoint_config = dict(interval=250)
evaluation = dict(interval=250)
