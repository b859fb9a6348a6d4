"""Stand-in for the compiled module `DCNv3`, installed where nothing could be compiled.

The same two functions, in plain PyTorch through torch.ops.ops_dcnv3.
"""

import torch
from torch import Tensor

compiled = False
reason = "ops_dcnv3 was installed without compiling: @REASON@"


def dcnv3_forward(
    input: Tensor, offset: Tensor, mask: Tensor, *arguments: int | float | bool
) -> Tensor:
    """Forward pass, with the original package's arguments (kernel_h ... remove_center)."""
    import ops_dcnv3.functions  # noqa: F401 (defines the operator)

    *geometry, _im2col_step, remove_center = arguments
    return torch.ops.ops_dcnv3.dcnv3(input, offset, mask, *geometry, bool(remove_center))


def dcnv3_backward(
    input: Tensor, offset: Tensor, mask: Tensor, *arguments: int | float | bool | Tensor
) -> list[Tensor]:
    """Backward pass, with the original package's arguments (kernel_h ... remove_center)."""
    import ops_dcnv3.functions  # noqa: F401 (defines the operator)

    *geometry, grad_output, _im2col_step, remove_center = arguments
    return list(
        torch.ops.ops_dcnv3.dcnv3_backward(
            grad_output, input, offset, mask, *geometry, bool(remove_center)
        )
    )
