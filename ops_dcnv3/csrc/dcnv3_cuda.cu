// CUDA kernels. Every thread owns one output pixel and group (forward: one block of its channels),
// so offset and mask gradients need no reduction; input gradients are summed atomically in acc_t.
#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "dcnv3_op.h"

namespace dcnv3 {

namespace {

constexpr int kThreads = 128;
constexpr int kChannelBlock = 8;
constexpr int64_t kMaxBlocks = 1 << 20;  // beyond that every thread takes several items in turn

int64_t blocks_for(int64_t items) {
  return std::min((items + kThreads - 1) / kThreads, kMaxBlocks);
}

template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kThreads) forward_kernel(
    const Geometry s, const scalar_t* __restrict__ input, const scalar_t* __restrict__ offset,
    const scalar_t* __restrict__ mask, scalar_t* __restrict__ output) {
  const int64_t turns = (s.group_channels + kChannelBlock - 1) / kChannelBlock;
  const int64_t items = s.out_pixels() * s.group * turns;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items;
       item += step) {
    const int64_t first = item % turns * kChannelBlock;
    const int64_t pixel_group = item / turns;
    const int64_t g = pixel_group % s.group, pixel = pixel_group / s.group;
    const int64_t plane = s.out_height * s.out_width, n = pixel / plane;
    const int64_t left = s.group_channels - first;
    const int64_t first_point = pixel_group * s.points();
    forward_block<scalar_t, acc_t, kChannelBlock>(
        s, pixel % plane / s.out_width, pixel % s.out_width, g, first,
        left < kChannelBlock ? left : kChannelBlock,
        input + n * s.height * s.width * s.channels(), offset + 2 * first_point,
        mask + first_point, output + pixel * s.channels());
  }
}

template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const Geometry s, const scalar_t* __restrict__ grad_output, const scalar_t* __restrict__ input,
    const scalar_t* __restrict__ offset, const scalar_t* __restrict__ mask,
    acc_t* __restrict__ grad_input, scalar_t* __restrict__ grad_offset,
    scalar_t* __restrict__ grad_mask) {
  const int64_t items = s.out_pixels() * s.group;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items;
       item += step) {
    const int64_t g = item % s.group, pixel = item / s.group;
    const int64_t plane = s.out_height * s.out_width, n = pixel / plane;
    const int64_t slice = n * s.height * s.width * s.channels() + g * s.group_channels;
    const int64_t first_point = item * s.points();
    backward_pixel<scalar_t, acc_t>(
        s, pixel % plane / s.out_width, pixel % s.out_width,
        grad_output + pixel * s.channels() + g * s.group_channels, input + slice,
        offset + 2 * first_point, mask + first_point, grad_input + slice, s.channels(),
        grad_offset + 2 * first_point, grad_mask + first_point,
        [](acc_t* address, acc_t value) { atomicAdd(address, value); });
  }
}

at::Tensor forward_cuda(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, DCNV3_ARGUMENTS) {
  const Geometry s = check(input, offset, mask, DCNV3_ARGUMENT_NAMES);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor input_ = input.contiguous(), offset_ = offset.contiguous(),
                   mask_ = mask.contiguous();
  at::Tensor output =
      at::empty({s.batch, s.out_height, s.out_width, s.channels()}, input_.options());
  if (output.numel() == 0) return output;
  const int64_t turns = (s.group_channels + kChannelBlock - 1) / kChannelBlock;
  const int64_t blocks = blocks_for(s.out_pixels() * s.group * turns);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "dcnv3_forward_cuda", [&] {
        forward_kernel<scalar_t, at::opmath_type<scalar_t>>
            <<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
                s, input_.const_data_ptr<scalar_t>(), offset_.const_data_ptr<scalar_t>(),
                mask_.const_data_ptr<scalar_t>(), output.mutable_data_ptr<scalar_t>());
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& mask, DCNV3_ARGUMENTS) {
  const Geometry s = check(input, offset, mask, DCNV3_ARGUMENT_NAMES);
  check_grad_output(grad_output, input, s);
  // Atomic sums arrive in any order: torch.use_deterministic_algorithms(True) refuses them.
  at::globalContext().alertNotDeterministic("dcnv3_backward_cuda");
  const c10::cuda::CUDAGuard guard(input.device());
  const auto contiguous = at::MemoryFormat::Contiguous;
  const at::Tensor grad_output_ = grad_output.contiguous(), input_ = input.contiguous(),
                   offset_ = offset.contiguous(), mask_ = mask.contiguous();
  at::Tensor grad_input = at::zeros(
      input_.sizes(), input_.options().dtype(at::toOpMathType(input_.scalar_type())));
  at::Tensor grad_offset = at::empty_like(offset_, {}, {}, {}, {}, contiguous);
  at::Tensor grad_mask = at::empty_like(mask_, {}, {}, {}, {}, contiguous);
  if (grad_output.numel() == 0) return {grad_input.to(input.dtype()), grad_offset, grad_mask};
  const int64_t blocks = blocks_for(s.out_pixels() * s.group);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "dcnv3_backward_cuda", [&] {
        using acc_t = at::opmath_type<scalar_t>;
        backward_kernel<scalar_t, acc_t>
            <<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
                s, grad_output_.const_data_ptr<scalar_t>(), input_.const_data_ptr<scalar_t>(),
                offset_.const_data_ptr<scalar_t>(), mask_.const_data_ptr<scalar_t>(),
                grad_input.mutable_data_ptr<acc_t>(), grad_offset.mutable_data_ptr<scalar_t>(),
                grad_mask.mutable_data_ptr<scalar_t>());
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return {grad_input.to(input.scalar_type()), grad_offset, grad_mask};
}

}  // namespace

TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, m) {
  m.impl("dcnv3", forward_cuda);
  m.impl("dcnv3_backward", backward_cuda);
}

}  // namespace dcnv3
