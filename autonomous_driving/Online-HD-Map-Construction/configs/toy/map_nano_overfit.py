# Two frames, learnt by heart and evaluated on themselves.
# python ../tools/make_synthetic.py hdmap data/toy_overfit --train 2 --val 1 --frames 1
_base_ = "./map_nano.py"
data_root = "data/toy_overfit/"
same = dict(ann_file=data_root + "train_annotations.json", data_root=data_root + "argoverse2")
data = dict(
    samples_per_gpu=2,
    train=dict(
        _delete_=True,
        type="RepeatDataset",
        times=50,
        dataset=dict(type="AV2Dataset", pipeline={{_base_.train_pipeline}}, **same),
    ),
    val=same,
    test=same,
)
optimizer = dict(weight_decay=0.0)
runner = dict(max_epochs=8)
evaluation = dict(interval=1)
