# Tested on VOC 2012, whose test annotations are not public: docs/detection_data.md.
_base_ = "./dino_4scale_cbinternimage_h_objects365_voc07.py"
data = dict(
    val=dict(
        ann_file="./data/VOCdevkit/VOC2012test/ImageSets/Main/test.txt",
        img_prefix="./data/VOCdevkit/VOC2012test/",
    ),
    test=dict(
        ann_file="./data/VOCdevkit/VOC2012test/ImageSets/Main/test.txt",
        img_prefix="./data/VOCdevkit/VOC2012test/",
    ),
)
