# Two frames, learnt by heart and evaluated on themselves: data as in olv2_nano.py.
_base_ = "./olv2_nano.py"
frames = dict(collection="data_dict_sample_train")
data = dict(
    samples_per_gpu=2,
    train=dict(
        _delete_=True,
        type="RepeatDataset",
        times=100,
        dataset=dict(
            type="OpenLaneV2SubsetADataset",
            data_root={{_base_.data_root}},
            pipeline={{_base_.data.train.pipeline}},
            test_mode=False,
            **frames,
        ),
    ),
    val=frames,
    test=frames,
)
optimizer = dict(weight_decay=0.0)
runner = dict(max_epochs=16)
evaluation = dict(interval=2)
