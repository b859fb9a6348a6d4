# Two frames by heart: checks that model, loss and metric fit together (see README.md).
_base_ = ["./occ_nano.py"]
data_root = "data/toy/occ3d-nus/"
bev = 100
model = dict(
    pts_bbox_head=dict(
        bev_h=bev,
        bev_w=bev,
        loss_occ=dict(class_weight=[1.0] * 17 + [0.4]),
        positional_encoding=dict(row_num_embed=bev, col_num_embed=bev),
    )
)
ann_file = data_root + "occ_infos_temporal_train.pkl"
data = dict(
    train=dict(max_frames=2),
    val=dict(max_frames=2, ann_file=ann_file),
    test=dict(max_frames=2, ann_file=ann_file),
)
optimizer = dict(lr=4e-3)
lr_config = dict(warmup_iters=10)
runner = dict(type="EpochBasedRunner", max_epochs=120)
evaluation = dict(interval=30)
checkpoint_config = dict(interval=30)
log_config = dict(interval=1)
