// The CUDA side of the operator: tensors in, kernel launches, errors out.
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

#include "dcnv3_cuda_kernels.cuh"
#include "dcnv3_op.h"

namespace dcnv3 {

namespace {

constexpr int64_t kMaxBlocks = 1 << 20;  // beyond that every thread takes several items in turn

int64_t blocks_for(int64_t items) {
  return std::min((items + kThreads - 1) / kThreads, kMaxBlocks);
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
