"""DCNv3 in Triton: the kernels alone; `triton_backend.py` launches them.

InternImage (arXiv 2211.05778), section 3.1, equation 2; conventions as in `reference.py`.

A row is one output pixel and group: row r = pixel * G + g, so that row r of the output, of its
gradient and of separate offsets and masks lies right after row r - 1. A program handles
BLOCK_ROWS rows, one channel per column of its tile. Each point of a row is located once per
program; forward keeps the running sums [BLOCK_ROWS, BLOCK_CHANNELS] in registers, and backward
reduces the products with grad_output over the channels, so that offsets and masks get their
gradients without atomics. Only grad_input needs them: several points may sample one pixel.

    ACC          type of all arithmetic: float64 for float64, else float32
    DEPTH        channels of a group
    SOFTMAX      the masks are logits, normalised over the points of the row
    WIDE         a tensor has 2^31 elements or more: indices are 64-bit
"""

import triton
import triton.language as tl

# What is passed as a number: neither kernel is compiled again because one of them is 1 or even.
RUNTIME_SIZES = (
    "rows",
    "height",
    "width",
    "out_plane",
    "out_width",
    "group",
    "offset_pixel",
    "offset_group",
    "mask_pixel",
    "mask_group",
)


@triton.jit
def _split_rows(row, group, out_plane, out_width):
    """Output pixel, group, batch element and position (y, x) of each row."""
    pixel = row // group
    return pixel, row % group, pixel // out_plane, pixel % out_plane // out_width, pixel % out_width


@triton.jit
def _window(out, STRIDE: tl.constexpr, PAD: tl.constexpr, CENTRE: tl.constexpr,
            SCALE: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Where the first kernel point of a window lies along one axis, before its offset."""
    return (out * STRIDE + (CENTRE - PAD)).to(ACC) - CENTRE * SCALE


@triton.jit
def _locate(offset, kept, first_x, first_y, grid_x, grid_y, height, width,
            SCALE: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """One point per row: inside the open box or not, upper left neighbour, distances to it.

    A NaN is outside. Points outside are moved to (0, 0), so that everything stays finite.
    """
    x = first_x + (grid_x + tl.load(offset, mask=kept, other=0.0).to(ACC)) * SCALE
    y = first_y + (grid_y + tl.load(offset + 1, mask=kept, other=0.0).to(ACC)) * SCALE
    inside = kept & (x > -1) & (y > -1) & (x < width) & (y < height)
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    return inside, left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def _softmax_terms(mask, kept, POINTS: tl.constexpr, ACC: tl.constexpr):
    """Largest logit of each row, and one over the sum of exp(logit - largest)."""
    largest = tl.load(mask, mask=kept, other=0.0).to(ACC)
    for t in range(1, POINTS):
        largest = tl.maximum(largest, tl.load(mask + t, mask=kept, other=0.0).to(ACC))
    total = tl.zeros_like(largest)
    for t in range(POINTS):
        total += tl.exp(tl.load(mask + t, mask=kept, other=0.0).to(ACC) - largest)
    return largest, 1.0 / total


@triton.jit
def _neighbour(input, image, column, row, height, width, group, g, inside, channel,
               DEPTH: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Values at one neighbour of each point (0 outside), their addresses and which are inside."""
    valid = inside & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    first = ((image + row * width + column) * group + g) * DEPTH
    address = first[:, None] + channel[None, :]
    present = valid[:, None] & (channel < DEPTH)[None, :]
    return tl.load(input + address, mask=present, other=0.0).to(ACC), address, present


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def forward_kernel(
    input,  # (N, H, W, G * DEPTH)
    offset,  # of pixel 0 and group 0
    mask,  # likewise
    output,  # (rows, DEPTH)
    rows,
    height,
    width,
    out_plane,  # output pixels of one image
    out_width,
    group,
    offset_pixel,  # elements from one output pixel to the next
    offset_group,  # elements from one group to the next
    mask_pixel,
    mask_group,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    DEPTH: tl.constexpr,
    SCALE: tl.constexpr,
    REMOVE_CENTER: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """A tile of the output: BLOCK_ROWS rows and BLOCK_CHANNELS of their channels."""
    BLOCKS: tl.constexpr = (DEPTH + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    CENTRE_X: tl.constexpr = DILATION_W * (KERNEL_W - 1) // 2
    CENTRE_Y: tl.constexpr = DILATION_H * (KERNEL_H - 1) // 2
    CENTRE: tl.constexpr = KERNEL_W // 2 * KERNEL_H + KERNEL_H // 2
    POINTS: tl.constexpr = KERNEL_H * KERNEL_W - REMOVE_CENTER

    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    row = program // BLOCKS * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = program % BLOCKS * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    kept = row < rows
    pixel, g, image, out_y, out_x = _split_rows(row, group, out_plane, out_width)
    image = image * (height * width)
    first_x = _window(out_x, STRIDE_W, PAD_W, CENTRE_X, SCALE, ACC)
    first_y = _window(out_y, STRIDE_H, PAD_H, CENTRE_Y, SCALE, ACC)
    offset += pixel * offset_pixel + g * offset_group
    mask += pixel * mask_pixel + g * mask_group
    if SOFTMAX:
        largest, inverse = _softmax_terms(mask, kept, POINTS, ACC)

    total = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], ACC)
    for t in range(POINTS):
        place = t
        if REMOVE_CENTER:
            place = t + (t >= CENTRE)
        inside, left, top, right_share, lower_share = _locate(
            offset + 2 * t, kept, first_x, first_y, place // KERNEL_H * DILATION_W,
            place % KERNEL_H * DILATION_H, height, width, SCALE, ACC
        )  # fmt: skip
        weight = tl.load(mask + t, mask=kept, other=0.0).to(ACC)
        if SOFTMAX:
            weight = tl.exp(weight - largest) * inverse
        weight = tl.where(inside, weight, 0.0)
        sample = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], ACC)
        for corner in tl.static_range(4):
            value, _, _ = _neighbour(
                input, image, left + corner % 2, top + corner // 2, height, width, group, g,
                inside, channel, DEPTH, ACC
            )  # fmt: skip
            share_x = right_share if corner % 2 else 1 - right_share
            share_y = lower_share if corner // 2 else 1 - lower_share
            sample += (share_x * share_y)[:, None] * value
        total += weight[:, None] * sample

    address = (row * DEPTH)[:, None] + channel[None, :]
    present = kept[:, None] & (channel < DEPTH)[None, :]
    tl.store(output + address, total.to(output.dtype.element_ty), mask=present)


@triton.jit
def _gradient(grad_output, row, kept, first_channel, DEPTH: tl.constexpr, ACC: tl.constexpr,
              BLOCK_CHANNELS: tl.constexpr):  # fmt: skip
    """A block of channels of grad_output, 0 past the end."""
    channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
    address = (row * DEPTH)[:, None] + channel[None, :]
    present = kept[:, None] & (channel < DEPTH)[None, :]
    return tl.load(grad_output + address, mask=present, other=0.0).to(ACC)


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def backward_kernel(
    grad_output,  # (rows, DEPTH)
    input,  # (N, H, W, G * DEPTH)
    offset,  # of pixel 0 and group 0
    mask,  # likewise
    grad_input,  # like input, in ACC, zeros
    grad_offset,  # like offset
    grad_mask,  # like mask
    rows,
    height,
    width,
    out_plane,  # output pixels of one image
    out_width,
    group,
    offset_pixel,  # elements from one output pixel to the next
    offset_group,  # elements from one group to the next
    mask_pixel,
    mask_group,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    DEPTH: tl.constexpr,
    SCALE: tl.constexpr,
    REMOVE_CENTER: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
):
    """All gradients that BLOCK_ROWS rows cause; channels in turns of BLOCK_CHANNELS."""
    CENTRE_X: tl.constexpr = DILATION_W * (KERNEL_W - 1) // 2
    CENTRE_Y: tl.constexpr = DILATION_H * (KERNEL_H - 1) // 2
    CENTRE: tl.constexpr = KERNEL_W // 2 * KERNEL_H + KERNEL_H // 2
    POINTS: tl.constexpr = KERNEL_H * KERNEL_W - REMOVE_CENTER

    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    row = program * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    kept = row < rows
    pixel, g, image, out_y, out_x = _split_rows(row, group, out_plane, out_width)
    image = image * (height * width)
    first_x = _window(out_x, STRIDE_W, PAD_W, CENTRE_X, SCALE, ACC)
    first_y = _window(out_y, STRIDE_H, PAD_H, CENTRE_Y, SCALE, ACC)
    offset_start = pixel * offset_pixel + g * offset_group
    mask_start = pixel * mask_pixel + g * mask_group
    points = tl.arange(0, BLOCK_POINTS)
    if SOFTMAX:
        largest, inverse = _softmax_terms(mask + mask_start, kept, POINTS, ACC)
        by_weight = tl.zeros([BLOCK_ROWS, BLOCK_POINTS], ACC)  # gradients by the softmax's results

    gradient = _gradient(grad_output, row, kept, 0, DEPTH, ACC, BLOCK_CHANNELS)
    for t in range(POINTS):
        place = t
        if REMOVE_CENTER:
            place = t + (t >= CENTRE)
        inside, left, top, right_share, lower_share = _locate(
            offset + offset_start + 2 * t, kept, first_x, first_y, place // KERNEL_H * DILATION_W,
            place % KERNEL_H * DILATION_H, height, width, SCALE, ACC
        )  # fmt: skip
        weight = tl.load(mask + mask_start + t, mask=kept, other=0.0).to(ACC)
        if SOFTMAX:
            weight = tl.exp(weight - largest) * inverse
        weight = tl.where(inside, weight, 0.0)
        by_value = tl.zeros([BLOCK_ROWS], ACC)
        by_x = tl.zeros([BLOCK_ROWS], ACC)
        by_y = tl.zeros([BLOCK_ROWS], ACC)
        for first_channel in range(0, DEPTH, BLOCK_CHANNELS):
            channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
            if DEPTH > BLOCK_CHANNELS:
                gradient = _gradient(
                    grad_output, row, kept, first_channel, DEPTH, ACC, BLOCK_CHANNELS
                )
            for corner in tl.static_range(4):
                value, address, present = _neighbour(
                    input, image, left + corner % 2, top + corner // 2, height, width, group, g,
                    inside, channel, DEPTH, ACC
                )  # fmt: skip
                share_x = right_share if corner % 2 else 1 - right_share
                share_y = lower_share if corner // 2 else 1 - lower_share
                spread = (weight * share_x * share_y)[:, None] * gradient
                tl.atomic_add(grad_input + address, spread, mask=present, sem="relaxed")
                along = tl.sum(gradient * value, axis=1)
                by_value += share_x * share_y * along
                by_x += (share_y if corner % 2 else -share_y) * along
                by_y += (share_x if corner // 2 else -share_x) * along
        by_value = tl.where(inside, by_value, 0.0)
        by_x = tl.where(inside, by_x * weight * SCALE, 0.0)
        by_y = tl.where(inside, by_y * weight * SCALE, 0.0)
        target = grad_offset + offset_start + 2 * t
        tl.store(target, by_x.to(grad_offset.dtype.element_ty), mask=kept)
        tl.store(target + 1, by_y.to(grad_offset.dtype.element_ty), mask=kept)
        if SOFTMAX:
            by_weight = tl.where((points == t)[None, :], by_value[:, None], by_weight)
        else:
            target = grad_mask + mask_start + t
            tl.store(target, by_value.to(grad_mask.dtype.element_ty), mask=kept)

    if SOFTMAX:
        address = mask_start[:, None] + points[None, :]
        present = kept[:, None] & (points < POINTS)[None, :]
        logit = tl.load(mask + address, mask=present, other=float("-inf")).to(ACC)
        weights = tl.exp(logit - largest[:, None]) * inverse[:, None]
        weights = tl.where(present, weights, 0.0)
        mean = tl.sum(weights * by_weight, axis=1)
        by_logit = weights * (by_weight - mean[:, None])
        tl.store(grad_mask + address, by_logit.to(grad_mask.dtype.element_ty), mask=present)
