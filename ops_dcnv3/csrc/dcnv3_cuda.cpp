// The CUDA side of the operators: tensors in, kernel launches, errors out. Compiled by the C++
// compiler alone; the kernels are in dcnv3_cuda_kernels.cu.
#include <ATen/Context.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "dcnv3_cuda_kernels.h"
#include "dcnv3_op.h"

namespace dcnv3 {

namespace {

Type type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return Type::kDouble;
    case at::kFloat: return Type::kFloat;
    case at::kHalf: return Type::kHalf;
    case at::kBFloat16: return Type::kBFloat16;
    default: break;
  }
  C10_THROW_ERROR(
      TypeError, c10::str(
                     "dcnv3: input must be float64, float32, float16 or bfloat16, got ",
                     tensor.scalar_type()));
}

// The points of a call, whatever tensors they come in.
struct Points {
  PointLayout layout;
  const void* offset;
  const void* mask;
};

const void* element(const at::Tensor& tensor, int64_t index) {
  return static_cast<const char*>(tensor.const_data_ptr()) + index * tensor.element_size();
}

void* mutable_element(const at::Tensor& tensor, int64_t index) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + index * tensor.element_size();
}

at::Tensor forward(const Geometry& s, const at::Tensor& input, const Points& points) {
  const Type type = type_of(input);
  at::Tensor output =
      at::empty({s.batch, s.out_height, s.out_width, s.channels()}, input.options());
  if (output.numel() == 0) return output;
  C10_CUDA_CHECK(launch_forward(
      type, s, points.layout, input.const_data_ptr(), points.offset, points.mask,
      output.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return output;
}

// Returns the gradient of the input; the points' gradients go to `grad_offset` and `grad_mask`.
at::Tensor backward(
    const Geometry& s, const at::Tensor& grad_output, const at::Tensor& input, const Points& points,
    void* grad_offset, void* grad_mask) {
  const Type type = type_of(input);
  if (grad_output.numel() == 0) return at::zeros(input.sizes(), input.options());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(launch_point_gradients(
      type, s, points.layout, grad_output.const_data_ptr(), input.const_data_ptr(), points.offset,
      points.mask, grad_offset, grad_mask, stream));
  int processors = 0;
  C10_CUDA_CHECK(
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, input.get_device()));
  // Sums from several blocks arrive in any order; a deterministic plan does without them.
  const ScatterPlan plan = plan_input_gradient(
      type, s, points.layout, grad_output.const_data_ptr(), points.offset,
      at::globalContext().deterministicAlgorithms(), processors);
  const auto sum_type = at::toOpMathType(input.scalar_type());
  at::Tensor grad_input = plan.owned
                              ? at::empty(input.sizes(), input.options())
                              : at::zeros(input.sizes(), input.options().dtype(sum_type));
  void* const target = grad_input.mutable_data_ptr();
  C10_CUDA_CHECK(launch_input_gradient(
      type, s, points.layout, plan, grad_output.const_data_ptr(), points.offset, points.mask,
      plan.owned ? nullptr : target, plan.owned ? target : nullptr, stream));
  return grad_input.to(input.scalar_type());
}

at::Tensor dcnv3_cuda(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, DCNV3_ARGUMENTS) {
  const Geometry s = check(input, offset, mask, DCNV3_ARGUMENT_NAMES);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor offset_ = offset.contiguous(), mask_ = mask.contiguous();
  const Points points{separate_layout(s), element(offset_, 0), element(mask_, 0)};
  return forward(s, input.contiguous(), points);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> dcnv3_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& mask, DCNV3_ARGUMENTS) {
  const Geometry s = check(input, offset, mask, DCNV3_ARGUMENT_NAMES);
  check_grad_output(grad_output, input, s);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor offset_ = offset.contiguous(), mask_ = mask.contiguous();
  at::Tensor grad_offset = at::empty_like(offset_), grad_mask = at::empty_like(mask_);
  const Points points{separate_layout(s), element(offset_, 0), element(mask_, 0)};
  at::Tensor grad_input = backward(
      s, grad_output.contiguous(), input.contiguous(), points, mutable_element(grad_offset, 0),
      mutable_element(grad_mask, 0));
  return {grad_input, grad_offset, grad_mask};
}

at::Tensor dcnv3_fused_cuda(
    const at::Tensor& input, const at::Tensor& offset_mask, DCNV3_ARGUMENTS, bool softmax,
    bool interleaved) {
  const Geometry s = check_fused(input, offset_mask, DCNV3_ARGUMENT_NAMES);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor both = offset_mask.contiguous();
  const Points points{
      fused_layout(s, both.size(3), softmax, interleaved), element(both, 0),
      element(both, fused_mask_start(s, interleaved))};
  return forward(s, input.contiguous(), points);
}

std::tuple<at::Tensor, at::Tensor> dcnv3_fused_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset_mask,
    DCNV3_ARGUMENTS, bool softmax, bool interleaved) {
  const Geometry s = check_fused(input, offset_mask, DCNV3_ARGUMENT_NAMES);
  check_grad_output(grad_output, input, s);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor both = offset_mask.contiguous();
  at::Tensor grad_both = at::empty_like(both);
  const int64_t used = 3 * s.group * s.points();
  if (both.size(3) > used) grad_both.narrow(3, used, both.size(3) - used).zero_();
  const int64_t start = fused_mask_start(s, interleaved);
  const Points points{
      fused_layout(s, both.size(3), softmax, interleaved), element(both, 0), element(both, start)};
  at::Tensor grad_input = backward(
      s, grad_output.contiguous(), input.contiguous(), points, mutable_element(grad_both, 0),
      mutable_element(grad_both, start));
  return {grad_input, grad_both};
}

}  // namespace

TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, m) {
  m.impl("dcnv3", dcnv3_cuda);
  m.impl("dcnv3_backward", dcnv3_backward_cuda);
  m.impl("dcnv3_fused", dcnv3_fused_cuda);
  m.impl("dcnv3_fused_backward", dcnv3_fused_backward_cuda);
}

}  // namespace dcnv3
