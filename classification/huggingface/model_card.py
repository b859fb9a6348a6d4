"""The README.md of a converted folder."""

from __future__ import annotations

from typing import Any

_PAPERS = {
    "DCNv3": (
        "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
        "https://arxiv.org/abs/2211.05778",
        """@inproceedings{wang2023internimage,
  title={InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions},
  author={Wang, Wenhai and Dai, Jifeng and Chen, Zhe and Huang, Zhenhang and Li, Zhiqi and Zhu,
          Xizhou and Hu, Xiaowei and Lu, Tong and Lu, Lewei and Li, Hongsheng and others},
  booktitle={CVPR},
  year={2023}
}""",
    ),
    "DCNv4": (
        "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision "
        "Applications",
        "https://arxiv.org/abs/2401.06197",
        """@inproceedings{xiong2024efficient,
  title={Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
         Applications},
  author={Xiong, Yuwen and Li, Zhiqi and Chen, Yuntao and Wang, Feng and Zhu, Xizhou and Luo,
          Jiapeng and Wang, Wenhai and Lu, Tong and Li, Hongsheng and Qiao, Yu and others},
  booktitle={CVPR},
  year={2024}
}""",
    ),
}

_TEMPLATE = """---
license: mit
library_name: transformers
pipeline_tag: image-classification
tags:
- internimage
- image-classification
- image-feature-extraction
{datasets}---

# {title}

{title} is a convolutional vision backbone built on deformable convolution ([{paper}]({url})).
{params:.1f} M parameters, {classes} classes, images of {size}x{size} pixels.{origin}

{results}
## Usage

The folder carries its own code: `pip install torch torchvision transformers`, and
`trust_remote_code=True`. With the package `ops_dcnv3` installed the operator runs in compiled
kernels, else in plain PyTorch, which is slower.

Classification:

```python
from PIL import Image
from transformers import pipeline

classify = pipeline("image-classification", model="{folder}", trust_remote_code=True)
print(classify(Image.open("photo.jpg")))
```

Feature maps:

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{folder}")
model = AutoModel.from_pretrained("{folder}", trust_remote_code=True)
images = processor(Image.open("photo.jpg"), return_tensors="pt")
with torch.no_grad():
    output = model(**images)
print([tuple(x.shape) for x in output.hidden_states])  # strides 4, 8, 16, 32
print(output.pooler_output.shape)
```

## Citation

```bibtex
{citation}
```
"""


def model_card(
    title: str,
    folder: str,
    config: Any,
    image_size: int,
    params: int,
    checkpoint: str,
    released: Any = None,
) -> str:
    """The text of README.md.

    Args:
        title: name of the model in print.
        folder: name of the folder, in the examples.
        config: an InternImageConfig.
        image_size: side of the images in pixels.
        params: number of parameters.
        checkpoint: file name that the weights come from.
        released: its row in the table of released models; None for weights of one's own.
    """
    paper, url, citation = _PAPERS["DCNv4" if config.core_op == "DCNv4" else "DCNv3"]
    origin = f" Converted from `{checkpoint}`."
    return _TEMPLATE.format(
        title=title,
        paper=paper,
        url=url,
        citation=citation,
        folder=folder,
        params=params / 1e6,
        classes=config.num_labels,
        size=image_size,
        origin=origin,
        results=_results(released),
        datasets=_datasets(released),
    )


def _results(released: Any) -> str:
    if released is None:
        return "Not a released checkpoint; its accuracy was not measured in the conversion.\n"
    lines = [f"Trained on {released.dataset}."]
    if released.pretraining:
        lines = [f"Pre-trained on {released.pretraining}, then trained on {released.dataset}."]
    top1 = released.metrics.get("top1")
    if top1 is not None:
        lines.append(
            f"Published top-1 accuracy on {released.dataset}: {top1} % (not measured again in the "
            "conversion)."
        )
    return "\n".join(lines) + "\n"


def _datasets(released: Any) -> str:
    known = {"ImageNet-1K": "imagenet-1k"}
    name = known.get(released.dataset) if released is not None else None
    return f"datasets:\n- {name}\n" if name else ""
