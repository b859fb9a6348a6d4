// Argument checks of the compiled operator.
#include <algorithm>

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

}  // namespace

Geometry check(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, DCNV3_ARGUMENTS) {
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
  TORCH_CHECK_TYPE(
      input.scalar_type() == offset.scalar_type() && input.scalar_type() == mask.scalar_type(),
      "dcnv3: input, offset and mask must have one dtype, got ", input.scalar_type(), ", ",
      offset.scalar_type(), ", ", mask.scalar_type());
  TORCH_CHECK_VALUE(
      input.device() == offset.device() && input.device() == mask.device(),
      "dcnv3: input, offset and mask must be on one device, got ", input.device(), ", ",
      offset.device(), ", ", mask.device());
  Geometry geometry{
      input.size(0), input.size(1), input.size(2),
      out_size(input.size(1), kernel_h, stride_h, pad_h, dilation_h),
      out_size(input.size(2), kernel_w, stride_w, pad_w, dilation_w),
      kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
      group, group_channels, offset_scale, remove_center};
  const int64_t per_pixel = group * geometry.points();
  const int64_t batch = geometry.batch, rows = geometry.out_height, columns = geometry.out_width;
  check_sizes(offset, "offset", {batch, rows, columns, 2 * per_pixel});
  check_sizes(mask, "mask", {batch, rows, columns, per_pixel});
  return geometry;
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
