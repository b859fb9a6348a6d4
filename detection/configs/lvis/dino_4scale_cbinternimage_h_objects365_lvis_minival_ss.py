_base_ = "./dino_4scale_cbinternimage_h_objects365_lvis_val_ss.py"
data = dict(
    val=dict(ann_file="data/lvis_v1/annotations/lvis_v1_minival.json"),
    test=dict(ann_file="data/lvis_v1/annotations/lvis_v1_minival.json"),
)
