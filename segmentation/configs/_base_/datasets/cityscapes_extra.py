# Cityscapes with the 20000 coarsely annotated images, for which refinement_final/train_extra holds
# improved masks.
_base_ = "./cityscapes.py"
data = dict(
    train=dict(
        img_dir=["leftImg8bit/train", "leftImg8bit/train_extra"],
        ann_dir=["gtFine/train", "refinement_final/train_extra"],
    )
)
