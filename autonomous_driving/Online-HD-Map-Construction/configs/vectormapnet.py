# VectorMapNet on ResNet-50. Published result on the Argoverse 2 validation frames of the online HD
# map challenge: mAP 42.79 (ped_crossing 37.22, divider 50.47, boundary 40.68).
_base_ = "./vectormapnet_intern.py"
model = dict(
    backbone=dict(
        img_backbone=dict(
            _delete_=True,
            type="ResNet",
            depth=50,
            num_stages=4,
            out_indices=(0, 1, 2, 3),
            norm_cfg=dict(type="BN2d", requires_grad=True),
            style="pytorch",
            init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
        ),
        img_neck=dict(in_channels=[256, 512, 1024, 2048]),
    )
)
