_base_ = [
    "../_base_/models/dino_4scale_internimage_h.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_dino_20k.py",
]
data = dict(
    samples_per_gpu=1,
    train=dict(pipeline={{_base_.large_scale_pipeline}}),
    val=dict(pipeline={{_base_.large_test_pipeline}}),
    test=dict(pipeline={{_base_.large_test_pipeline}}),
)
evaluation = dict(interval=200)
