# Eight images, learnt by heart and evaluated on themselves.
_base_ = "./dino_internimage_nano_toy.py"
data_root = "data/toy_coco_overfit/"
# python ../tools/toy_coco.py --train 8 --val 1 --output data/toy_coco_overfit
same = dict(
    ann_file=data_root + "annotations/instances_train.json", img_prefix=data_root + "train/"
)
data = dict(
    samples_per_gpu=4,
    train=dict(
        _delete_=True,
        type="RepeatDataset",
        times=40,
        dataset=dict(
            type="CocoDataset",
            classes={{_base_.classes}},
            pipeline={{_base_.box_pipeline}},
            **same,
        ),
    ),
    val=same,
    test=same,
)
optimizer = dict(weight_decay=0.0)
runner = dict(max_epochs=15)
