_base_ = [
    "../_base_/models/dino_4scale_cbinternimage_h.py",
    "../_base_/datasets/voc0712.py",
    "../_base_/schedules/schedule_dino_20k.py",
]
model = dict(bbox_head=dict(num_classes=20))
optimizer = dict(lr=5e-05)
checkpoint_config = dict(interval=500)
load_from = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/dino_4scale_cbinternimage_h_objects365_20classes.pth"
