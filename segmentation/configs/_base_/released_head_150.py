# The released UPerNet and SegFormer models for Cityscapes and Mapillary have heads for 150 classes,
# of which the first 19 were trained. mode="trim" takes these when such a file is loaded,
# mode="keep" builds the model with all 150 outputs, mode="refuse" wants files that fit.
released_head = dict(num_classes=150, trained=19, mode="trim")
