// Declarations shared by the CPU and CUDA sources of the extension.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <tuple>

#include "dcnv3_core.h"

namespace dcnv3 {

// The operator's integer and float arguments, in schema order.
#define DCNV3_ARGUMENTS                                                                        \
  int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h,       \
      int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t group,                    \
      int64_t group_channels, double offset_scale, bool remove_center
#define DCNV3_ARGUMENT_NAMES                                                                   \
  kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group,         \
      group_channels, offset_scale, remove_center

// Checks the tensors against each other and the arguments (c10::Error names what is wrong), so that
// no kernel can read outside its tensors even when called past the Python checks.
Geometry check(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, DCNV3_ARGUMENTS);
Geometry check_fused(const at::Tensor& input, const at::Tensor& offset_mask, DCNV3_ARGUMENTS);
void check_grad_output(
    const at::Tensor& grad_output, const at::Tensor& input, const Geometry& geometry);

// The instruction set of the CPU kernels, "exact" if there are none, and the choice of another (the
// best for an empty name).
std::string cpu_level();
void set_cpu_level(const std::string& name);

}  // namespace dcnv3
