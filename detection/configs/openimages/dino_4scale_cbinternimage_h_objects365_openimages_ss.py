_base_ = [
    "../_base_/models/dino_4scale_cbinternimage_h.py",
    "../_base_/datasets/openimages_detection.py",
    "../_base_/schedules/schedule_dino_20k.py",
]
model = dict(bbox_head=dict(num_classes=601))
runner = dict(max_iters=100000)
checkpoint_config = dict(interval=2000)
load_from = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/dino_4scale_cbinternimage_h_objects365_80classes.pth"
