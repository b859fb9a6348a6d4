"""The configuration tree with its defaults, and the values that each key accepts.

The tree is that of the original implementation; the keys added here are marked ``# added``.
"""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
    "BASE": [""],  # YAML files to read first, relative to the file that names them
    "DATA": {
        "BATCH_SIZE": 128,  # images per process
        "DATA_PATH": "",
        "DATASET": "imagenet",
        "IMG_SIZE": 224,
        "INTERPOLATION": "bicubic",
        "ZIP_MODE": False,  # <DATA_PATH>/train.zip and val.zip instead of folders
        "CACHE_MODE": "part",  # with ZIP_MODE: no | part (this rank's share) | full
        "PIN_MEMORY": True,
        "NUM_WORKERS": 8,
        "IMG_ON_MEMORY": False,  # keep the files in memory, once per node
        "TRAIN_LIST": "",  # added: file with lines "path label"
        "VAL_LIST": "",  # added
        "TRAIN_SHARDS": "",  # added: of webdataset, e.g. train/photos-{000000..000146}.tar
        "VAL_SHARDS": "",  # added
        "SHARD_WINDOW": 16,  # added: how many shards each process mixes at a time
        "SHARD_CACHE": "",  # added: where shards of a server go, '' is ~/.cache/internimage/shards
        "SHARD_CACHE_GB": 100.0,  # added: GiB that this folder may take up
        "MAX_CORRUPT": 50,  # added: more unreadable images than this stop the run
    },
    "MODEL": {
        "TYPE": "INTERN_IMAGE",  # intern_image | intern_image_meta_former | flash_intern_image
        "NAME": "intern_image",  # becomes the stem of the YAML
        "PRETRAINED": "",
        "RESUME": "",
        "NUM_CLASSES": 1000,  # the data set's class count wins
        "DROP_RATE": 0.0,
        "DROP_PATH_RATE": 0.1,
        "DROP_PATH_TYPE": "linear",
        "LABEL_SMOOTHING": 0.1,
        "HEAD_MAP": "",  # added: 22k -> 1k class map, '' is models/map22kto1k.txt
        "INTERN_IMAGE": {
            "DEPTHS": [4, 4, 18, 4],
            "GROUPS": [4, 8, 16, 32],
            "CHANNELS": 64,
            "LAYER_SCALE": None,
            "OFFSET_SCALE": 1.0,
            "MLP_RATIO": 4.0,
            "CORE_OP": "DCNv3",
            "POST_NORM": False,
            "RES_POST_NORM": False,
            "DW_KERNEL_SIZE": None,
            "USE_CLIP_PROJECTOR": False,
            "LEVEL2_POST_NORM": False,
            "LEVEL2_POST_NORM_BLOCK_IDS": None,
            "CENTER_FEATURE_SCALE": False,
            "REMOVE_CENTER": False,
            "BACKEND": "",  # added: '' chooses, else pytorch | cpp | cuda | triton
            "CLS_SCALE": 1.5,  # added
            "NORM_LAYER": "LN",  # added
            "ACT_LAYER": "GELU",  # added
        },
        "FLASH_INTERN_IMAGE": {  # of MODEL.TYPE flash_intern_image
            "DEPTHS": [4, 4, 18, 4],
            "GROUPS": [4, 8, 16, 32],
            "CHANNELS": 64,
            "LAYER_SCALE": None,
            "OFFSET_SCALE": 1.0,
            "MLP_RATIO": 4.0,
            "CORE_OP": "DCNv4",
            "POST_NORM": False,
            "RES_POST_NORM": False,
            "DW_KERNEL_SIZE": None,  # None: no depthwise convolution
            "USE_CLIP_PROJECTOR": False,
            "LEVEL2_POST_NORM": False,
            "LEVEL2_POST_NORM_BLOCK_IDS": None,
            "CENTER_FEATURE_SCALE": False,
            "DCN_OUTPUT_BIAS": False,
            "MLP_FC2_BIAS": False,
            "BACKEND": "",  # added
            "CLS_SCALE": 1.5,  # added
            "NORM_LAYER": "LN",  # added
            "ACT_LAYER": "GELU",  # added
        },
    },
    "TRAIN": {
        "START_EPOCH": 0,
        "EPOCHS": 300,
        "WARMUP_EPOCHS": 20,
        "WEIGHT_DECAY": 0.05,
        "BASE_LR": 5e-4,  # for 512 images per step; scaled with the real number
        "WARMUP_LR": 5e-7,
        "MIN_LR": 5e-6,
        "CLIP_GRAD": 5.0,
        "AUTO_RESUME": True,
        "ACCUMULATION_STEPS": 0,  # 0 and 1: no accumulation
        "USE_CHECKPOINT": False,
        "FSDP": False,  # added: shard weights, gradients and optimizer state (main.py)
        "LR_SCHEDULER": {"NAME": "cosine", "DECAY_EPOCHS": 30, "DECAY_RATE": 0.1},
        "OPTIMIZER": {
            "NAME": "adamw",
            "EPS": 1e-8,
            "BETAS": [0.9, 0.999],
            "MOMENTUM": 0.9,
            "USE_ZERO": False,
            "FREEZE_BACKBONE": None,  # list of stage indices
            "DCN_LR_MUL": None,
        },
        "EMA": {"ENABLE": False, "DECAY": 0.9998},
        "LR_LAYER_DECAY": False,
        "LR_LAYER_DECAY_RATIO": 0.875,
        "RAND_INIT_FT_HEAD": False,
    },
    "AUG": {
        "COLOR_JITTER": 0.4,
        "AUTO_AUGMENT": "rand-m9-mstd0.5-inc1",  # timm policy string, or 'none'
        "REPROB": 0.25,
        "REMODE": "pixel",
        "RECOUNT": 1,
        "MIXUP": 0.8,
        "CUTMIX": 1.0,
        "CUTMIX_MINMAX": None,
        "MIXUP_PROB": 1.0,
        "MIXUP_SWITCH_PROB": 0.5,
        "MIXUP_MODE": "batch",
        "RANDOM_RESIZED_CROP": False,  # with TEST.CROP False: random crops in validation
        "MEAN": [0.485, 0.456, 0.406],
        "STD": [0.229, 0.224, 0.225],
        "HFLIP": 0.5,  # added: probability of a horizontal flip
        "SCALE": [0.08, 1.0],  # added: area range of the random crop
        "RATIO": [3 / 4, 4 / 3],  # added: aspect-ratio range of the random crop
    },
    "TEST": {
        "CROP": True,
        "SEQUENTIAL": False,  # every rank walks the whole validation set
        "BATCH_SIZE": 0,  # added: 0 is DATA.BATCH_SIZE
    },
    "AMP_OPT_LEVEL": "",
    "AMP_TYPE": "float16",
    "OUTPUT": "",
    "TAG": "default",
    "SAVE_FREQ": 1,
    "SAVE_CKPT_NUM": 1,
    "PRINT_FREQ": 10,
    "EVAL_FREQ": 1,
    "SEED": 0,
    "EVAL_MODE": False,
    "THROUGHPUT_MODE": False,
    "LOCAL_RANK": 0,
    "EVAL_22K_TO_1K": False,
    "COMPILE": False,  # added
    "DEVICE": "auto",  # added
}

# What a key whose default is None takes besides None.
NONE_TYPES: dict[str, type] = {
    "MODEL.INTERN_IMAGE.LAYER_SCALE": float,
    "MODEL.INTERN_IMAGE.DW_KERNEL_SIZE": int,
    "MODEL.INTERN_IMAGE.LEVEL2_POST_NORM_BLOCK_IDS": list,
    "MODEL.FLASH_INTERN_IMAGE.LAYER_SCALE": float,
    "MODEL.FLASH_INTERN_IMAGE.DW_KERNEL_SIZE": int,
    "MODEL.FLASH_INTERN_IMAGE.LEVEL2_POST_NORM_BLOCK_IDS": list,
    "TRAIN.OPTIMIZER.FREEZE_BACKBONE": list,
    "TRAIN.OPTIMIZER.DCN_LR_MUL": float,
    "AUG.CUTMIX_MINMAX": list,
}

# Keys with a closed set of values.
CHOICES: dict[str, tuple[str, ...]] = {
    "DATA.DATASET": ("imagenet", "imagenet22K", "inat18", "folder", "webdataset"),
    "DATA.INTERPOLATION": ("bicubic", "bilinear", "nearest", "lanczos", "hamming", "box", "random"),
    "DATA.CACHE_MODE": ("no", "part", "full"),
    "MODEL.TYPE": ("intern_image", "intern_image_meta_former", "flash_intern_image"),
    "MODEL.DROP_PATH_TYPE": ("linear", "uniform"),
    "MODEL.INTERN_IMAGE.CORE_OP": ("DCNv3", "DCNv3_pytorch"),
    "MODEL.INTERN_IMAGE.BACKEND": ("", "pytorch", "cpp", "cuda", "triton"),
    "MODEL.INTERN_IMAGE.NORM_LAYER": ("LN", "BN"),
    "MODEL.INTERN_IMAGE.ACT_LAYER": ("GELU", "ReLU", "SiLU"),
    "MODEL.FLASH_INTERN_IMAGE.CORE_OP": ("DCNv4",),
    "MODEL.FLASH_INTERN_IMAGE.BACKEND": ("", "pytorch", "cpp", "cuda", "triton"),
    "MODEL.FLASH_INTERN_IMAGE.NORM_LAYER": ("LN", "BN"),
    "MODEL.FLASH_INTERN_IMAGE.ACT_LAYER": ("GELU", "ReLU", "SiLU"),
    "TRAIN.LR_SCHEDULER.NAME": ("cosine", "linear", "step"),
    "TRAIN.OPTIMIZER.NAME": ("adamw", "sgd"),
    "AUG.REMODE": ("pixel", "const", "rand"),
    "AUG.MIXUP_MODE": ("batch", "pair", "elem"),
    "AMP_OPT_LEVEL": ("", "O0", "O1", "O2"),
    "AMP_TYPE": ("float16", "bfloat16", "none"),
}

# Least value of keys that count something.
AT_LEAST: dict[str, int] = {
    "DATA.BATCH_SIZE": 1,
    "DATA.IMG_SIZE": 1,
    "DATA.NUM_WORKERS": 0,
    "DATA.MAX_CORRUPT": 0,
    "DATA.SHARD_WINDOW": 1,
    "DATA.SHARD_CACHE_GB": 0,
    "MODEL.NUM_CLASSES": 1,
    "MODEL.INTERN_IMAGE.CHANNELS": 1,
    "MODEL.FLASH_INTERN_IMAGE.CHANNELS": 1,
    "TRAIN.START_EPOCH": 0,
    "TRAIN.EPOCHS": 1,
    "TRAIN.WARMUP_EPOCHS": 0,
    "TRAIN.ACCUMULATION_STEPS": 0,
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": 1,
    "TEST.BATCH_SIZE": 0,
    "SAVE_FREQ": 1,
    "SAVE_CKPT_NUM": 1,
    "PRINT_FREQ": 1,
    "EVAL_FREQ": 1,
}

# Probabilities and shares.
IN_0_1 = (
    "MODEL.LABEL_SMOOTHING",
    "TRAIN.EMA.DECAY",
    "AUG.REPROB",
    "AUG.MIXUP_PROB",
    "AUG.MIXUP_SWITCH_PROB",
    "AUG.HFLIP",
)

# Number of entries of lists that have a fixed one.
LENGTHS: dict[str, int] = {
    "TRAIN.OPTIMIZER.BETAS": 2,
    "AUG.MEAN": 3,
    "AUG.STD": 3,
    "AUG.SCALE": 2,
    "AUG.RATIO": 2,
}
