# Eight images, learnt by heart and evaluated on themselves: there is no ceiling on the way.
_base_ = "./mask2former_internimage_nano_toy.py"
# python ../tools/toy_ade.py --train 8 --val 1 --output data/toy_ade_overfit
same = dict(
    data_root="data/toy_ade_overfit", img_dir="images/training", ann_dir="annotations/training"
)
data = dict(train=dict(**same, pipeline={{_base_.plain_mask_pipeline}}), val=same, test=same)
optimizer = dict(weight_decay=0.0)
runner = dict(max_iters=1500)
checkpoint_config = dict(interval=500)
evaluation = dict(interval=500)
