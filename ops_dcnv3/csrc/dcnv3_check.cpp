// Argument checks of the compiled operator.
#include <algorithm>
#include <cmath>

#include "dcnv3_op.h"

namespace dcnv3 {

namespace {

// Keeps every product of two arguments, and so every size below, within 64 bits.
constexpr int64_t kLargest = (1 << 30) - 1;

int64_t out_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t room = in + 2 * pad - (dilation * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}

void check_sizes(const at::Tensor& tensor, const char* name, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == expected, "dcnv3: ", name, " must be ", expected, ", got ", tensor.sizes());
}

Geometry check_input(const at::Tensor& input, DCNV3_ARGUMENTS) {
  const auto [least, most] = std::minmax(
      {kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, group, group_channels});
  const auto [least_pad, most_pad] = std::minmax({pad_h, pad_w});
  TORCH_CHECK_VALUE(
      least >= 1 && least_pad >= 0 && std::max(most, most_pad) <= kLargest &&
          kernel_h * kernel_w <= kLargest,
      "dcnv3: kernel, stride, dilation, group and group_channels must be at least 1 and padding "
      "at least 0, and these and the kernel's area less than 2^30, got kernel ", kernel_h, "x",
      kernel_w, ", stride ", stride_h, "x", stride_w, ", padding ", pad_h, "x", pad_w,
      ", dilation ", dilation_h, "x", dilation_w, ", group ", group, ", group_channels ",
      group_channels);
  TORCH_CHECK_VALUE(
      input.dim() == 4 && input.size(3) == group * group_channels,
      "dcnv3: input must be (N, H, W, ", group * group_channels, "), got ", input.sizes());
  TORCH_CHECK_VALUE(
      input.size(1) >= 1 && input.size(2) >= 1, "dcnv3: input has no pixels: ", input.sizes());
  TORCH_CHECK_VALUE(
      std::isfinite(offset_scale), "dcnv3: offset_scale must be finite, got ", offset_scale);
  return {
      input.size(0), input.size(1), input.size(2),
      out_size(input.size(1), kernel_h, stride_h, pad_h, dilation_h),
      out_size(input.size(2), kernel_w, stride_w, pad_w, dilation_w),
      kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
      group, group_channels, offset_scale, remove_center};
}

void check_same_kind(const at::Tensor& tensor, const char* name, const at::Tensor& input) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == input.scalar_type(), "dcnv3: input and ", name,
      " must have one dtype, got ", input.scalar_type(), " and ", tensor.scalar_type());
  TORCH_CHECK_VALUE(
      tensor.device() == input.device(), "dcnv3: input and ", name, " must be on one device, got ",
      input.device(), " and ", tensor.device());
}

}  // namespace

Geometry check(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, DCNV3_ARGUMENTS) {
  const Geometry s = check_input(input, DCNV3_ARGUMENT_NAMES);
  check_same_kind(offset, "offset", input);
  check_same_kind(mask, "mask", input);
  const int64_t per_pixel = group * s.points();
  check_sizes(offset, "offset", {s.batch, s.out_height, s.out_width, 2 * per_pixel});
  check_sizes(mask, "mask", {s.batch, s.out_height, s.out_width, per_pixel});
  return s;
}

Geometry check_fused(
    const at::Tensor& input, const at::Tensor& offset_mask, DCNV3_ARGUMENTS) {
  const Geometry s = check_input(input, DCNV3_ARGUMENT_NAMES);
  check_same_kind(offset_mask, "offset_mask", input);
  const int64_t needed = 3 * group * s.points();
  const bool has_padding = offset_mask.dim() == 4 && offset_mask.size(3) > needed;
  const int64_t last = has_padding ? offset_mask.size(3) : needed;
  check_sizes(offset_mask, "offset_mask", {s.batch, s.out_height, s.out_width, last});
  return s;
}

void check_grad_output(
    const at::Tensor& grad_output, const at::Tensor& input, const Geometry& geometry) {
  check_sizes(
      grad_output, "grad_output",
      {geometry.batch, geometry.out_height, geometry.out_width, geometry.channels()});
  TORCH_CHECK_TYPE(
      grad_output.scalar_type() == input.scalar_type() && grad_output.device() == input.device(),
      "dcnv3: grad_output must be ", input.scalar_type(), " on ", input.device(), ", got ",
      grad_output.scalar_type(), " on ", grad_output.device());
}

}  // namespace dcnv3
