# Objects365 v2 boxes (365 classes), what the H and G detectors were pre-trained on; images are
# named relative to train/ and val/. tools/download_dataset.py fetches it, docs/detection_data.md
# has an example of its use.
_base_ = "./coco_detection.py"
data = dict(
    train=dict(
        type="Objects365V2Dataset",
        ann_file="data/Objects365/Obj365_v2/annotations/zhiyuan_objv2_train.json",
        img_prefix="data/Objects365/Obj365_v2/train/",
    ),
    val=dict(
        type="Objects365V2Dataset",
        ann_file="data/Objects365/Obj365_v2/annotations/zhiyuan_objv2_val.json",
        img_prefix="data/Objects365/Obj365_v2/val/",
    ),
    test=dict(
        type="Objects365V2Dataset",
        ann_file="data/Objects365/Obj365_v2/annotations/zhiyuan_objv2_val.json",
        img_prefix="data/Objects365/Obj365_v2/val/",
    ),
)
