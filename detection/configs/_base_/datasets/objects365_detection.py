# Objects365 v2 boxes (365 classes), what the H and G detectors were pre-trained on; images are
# named relative to train/ and val/. tools/download_dataset.py fetches it, docs/detection_data.md
# has an example of its use.
_base_ = "./coco_detection.py"
data_root = "data/Objects365/Obj365_v2/"
data = dict(
    train=dict(
        type="Objects365V2Dataset",
        ann_file=data_root + "annotations/zhiyuan_objv2_train.json",
        img_prefix=data_root + "train/",
    ),
    val=dict(
        type="Objects365V2Dataset",
        ann_file=data_root + "annotations/zhiyuan_objv2_val.json",
        img_prefix=data_root + "val/",
    ),
    test=dict(
        type="Objects365V2Dataset",
        ann_file=data_root + "annotations/zhiyuan_objv2_val.json",
        img_prefix=data_root + "val/",
    ),
)
