_base_ = [
    "../_base_/models/dino_4scale_cbinternimage_h.py",
    "../_base_/datasets/lvis_v1_detection.py",
    "../_base_/schedules/schedule_dino_20k.py",
]
model = dict(bbox_head=dict(num_classes=1203))
runner = dict(max_iters=80000)
checkpoint_config = dict(interval=500, max_keep_ckpts=10)
load_from = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/dino_4scale_cbinternimage_h_objects365_80classes.pth"
