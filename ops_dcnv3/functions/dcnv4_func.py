"""DCNv4 as a function: `dcnv4`, and the name that code written for the package DCNv4 calls.

DCNv4 (arXiv 2401.06197) is DCNv3 without the softmax over the points of a group, and with offsets
and weights in one tensor, so both run on the same kernels. To switch code from the package DCNv4,
change its imports:

    from DCNv4 import DCNv4                    -> from ops_dcnv3.modules import DCNv4
    from DCNv4.functions import DCNv4Function  -> from ops_dcnv3.functions import DCNv4Function

State dicts load as they are. What that package needs and this one does not: a GPU; a compiled
extension; 8 or 9 points; channels per group in multiples of 16; batches of certain sizes.
"""

from __future__ import annotations

from torch import Tensor

from .dcnv3_func import dcnv3_fused


def dcnv4(
    input: Tensor,
    offset_mask: Tensor,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    group: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Deformable convolution v4 (arXiv 2401.06197, section 3.1).

    Each output pixel sums P weighted, bilinearly interpolated samples per group. The weights are
    used as they are: they may be negative and need not sum to one.

    Args:
        input: (N, H, W, C), channels last, C a multiple of `group`.
        offset_mask: (N, Ho, Wo, L), L at least group*P*3 with P = kernel_h * kernel_w -
            remove_center. For each group its P (x, y) offsets in input pixels before
            `offset_scale`, then its P weights, points in width-major order. Entries after the last
            group are padding: they are not read and get gradient 0.
        kernel_size: (height, width) or one int.
        stride: (height, width) or one int, at least 1.
        padding: (height, width) or one int, at least 0.
        dilation: (height, width) or one int, at least 1.
        group: number of groups G; each has C / G channels and its own points.
        offset_scale: multiplies the offsets and the dilated grid around its centre.
        remove_center: leave out the point (kernel_h // 2, kernel_w // 2).
        backend: as in `dcnv3`; every backend works.

    Returns:
        (N, Ho, Wo, C), with Ho and Wo as for `dcnv3`. float16 and bfloat16 accumulate in float32.

    Raises:
        ValueError, TypeError, RuntimeError: as `dcnv3`.

    Example:
        >>> x = torch.randn(1, 8, 8, 32)
        >>> offset_mask = torch.zeros(1, 8, 8, 56)  # 2 groups of 9 points: 54, and 2 of padding
        >>> dcnv4(x, offset_mask, group=2).shape
        torch.Size([1, 8, 8, 32])
    """
    return dcnv3_fused(
        input,
        offset_mask,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        group=group,
        offset_scale=offset_scale,
        remove_center=remove_center,
        softmax=False,
        interleaved=True,
        backend=backend,
    )


class DCNv4Function:
    """`DCNv4Function.apply(...)` under the package DCNv4's name and argument order."""

    @staticmethod
    def apply(
        input: Tensor,
        offset_mask: Tensor,
        kernel_h: int,
        kernel_w: int,
        stride_h: int,
        stride_w: int,
        pad_h: int,
        pad_w: int,
        dilation_h: int,
        dilation_w: int,
        group: int,
        group_channels: int,
        offset_scale: float,
        im2col_step: int = 256,
        remove_center: bool | int = False,
    ) -> Tensor:
        """Runs `dcnv4` with the fastest backend.

        `im2col_step` is accepted and has no effect: there is no limit on the batch size. Arguments,
        result and errors are otherwise those of `dcnv4`.
        """
        if input.dim() == 4 and input.shape[-1] != group * group_channels:
            raise ValueError(
                f"dcnv4: input must have group * group_channels = {group} * {group_channels} = "
                f"{group * group_channels} channels (channels last), got {tuple(input.shape)}"
            )
        return dcnv4(
            input,
            offset_mask,
            kernel_size=(kernel_h, kernel_w),
            stride=(stride_h, stride_w),
            padding=(pad_h, pad_w),
            dilation=(dilation_h, dilation_w),
            group=group,
            offset_scale=offset_scale,
            remove_center=bool(remove_center),
        )
