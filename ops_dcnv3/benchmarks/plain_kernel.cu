// DCNv3 in the most direct CUDA: the baseline of bench_cuda.py, not part of the package.
//
// Forward: one thread per output pixel and channel, which computes the positions of all its points
// itself. Backward: one block per output pixel and group with one thread per channel; every
// neighbour of every point is one atomic addition to the input's gradient, and for each point the
// first thread sums what the channels contribute to the gradients of offset and mask.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/extension.h>

#include "../csrc/dcnv3_core.h"

namespace {

using dcnv3::Geometry;
constexpr int kThreads = 256;

template <typename scalar_t, typename acc_t>
__global__ void forward_kernel(
    const Geometry s, const scalar_t* input, const scalar_t* offset, const scalar_t* mask,
    scalar_t* output) {
  const int64_t channels = s.channels(), points = s.points();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= s.out_pixels() * channels) return;
  const int64_t channel = item % channels, pixel = item / channels;
  const int64_t x = pixel % s.out_width, row = pixel / s.out_width;
  const int64_t first = (pixel * s.group + channel / s.group_channels) * points;
  const scalar_t* image = input + row / s.out_height * s.height * s.width * channels + channel;
  acc_t sum = 0;
  dcnv3::for_each_point(s, [&](int64_t t, int64_t kernel_y, int64_t kernel_x) {
    const auto sample = dcnv3::locate<acc_t>(
        s, row % s.out_height, x, kernel_y, kernel_x, static_cast<acc_t>(offset[2 * (first + t)]),
        static_cast<acc_t>(offset[2 * (first + t) + 1]));
    if (!sample.inside) return;
    for (int k = 0; k < 4; ++k) {
      if (!sample.valid[k]) continue;
      sum += static_cast<acc_t>(mask[first + t]) * sample.weight[k] *
             static_cast<acc_t>(image[sample.pixel[k] * channels]);
    }
  });
  output[item] = static_cast<scalar_t>(sum);
}

template <typename scalar_t, typename acc_t>
__global__ void backward_kernel(
    const Geometry s, const scalar_t* grad_output, const scalar_t* input, const scalar_t* offset,
    const scalar_t* mask, acc_t* grad_input, scalar_t* grad_offset, scalar_t* grad_mask) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto* parts = reinterpret_cast<acc_t*>(shared);  // (3, group_channels)
  const int64_t channels = s.channels(), points = s.points(), depth = s.group_channels;
  const int64_t group = blockIdx.x % s.group, pixel = blockIdx.x / s.group;
  const int64_t x = pixel % s.out_width, row = pixel / s.out_width;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * points;
  const int64_t channel = group * depth + threadIdx.x;
  const int64_t slice = row / s.out_height * s.height * s.width * channels + channel;
  const auto top = static_cast<acc_t>(grad_output[pixel * channels + channel]);
  dcnv3::for_each_point(s, [&](int64_t t, int64_t kernel_y, int64_t kernel_x) {
    const auto sample = dcnv3::locate<acc_t>(
        s, row % s.out_height, x, kernel_y, kernel_x, static_cast<acc_t>(offset[2 * (first + t)]),
        static_cast<acc_t>(offset[2 * (first + t) + 1]));
    const auto modulation = static_cast<acc_t>(mask[first + t]);
    acc_t along[4] = {0, 0, 0, 0};
    for (int k = 0; sample.inside && k < 4; ++k) {
      if (!sample.valid[k]) continue;
      const int64_t at = slice + sample.pixel[k] * channels;
      along[k] = top * static_cast<acc_t>(input[at]);
      atomicAdd(grad_input + at, modulation * sample.weight[k] * top);
    }
    const acc_t right = sample.inside ? sample.right : 0, below = sample.inside ? sample.below : 0;
    parts[threadIdx.x] =
        (1 - below) * (along[1] - along[0]) + below * (along[3] - along[2]);
    parts[depth + threadIdx.x] =
        (1 - right) * (along[2] - along[0]) + right * (along[3] - along[1]);
    parts[2 * depth + threadIdx.x] = (1 - below) * ((1 - right) * along[0] + right * along[1]) +
                                     below * ((1 - right) * along[2] + right * along[3]);
    __syncthreads();
    if (threadIdx.x == 0) {
      acc_t sums[3] = {0, 0, 0};
      for (int64_t c = 0; c < depth; ++c) {
        for (int i = 0; i < 3; ++i) sums[i] += parts[i * depth + c];
      }
      const acc_t scale = static_cast<acc_t>(s.offset_scale) * modulation;
      grad_offset[2 * (first + t)] = static_cast<scalar_t>(sample.inside ? scale * sums[0] : 0);
      grad_offset[2 * (first + t) + 1] = static_cast<scalar_t>(sample.inside ? scale * sums[1] : 0);
      grad_mask[first + t] = static_cast<scalar_t>(sums[2]);
    }
    __syncthreads();
  });
}

// A 3 x 3 kernel with stride, padding and dilation 1: all that the benchmark compares.
Geometry geometry_of(const at::Tensor& input, int64_t group) {
  const int64_t height = input.size(1), width = input.size(2);
  return {input.size(0), height, width, height, width, 3, 3, 1, 1, 1, 1, 1, 1, group,
          input.size(3) / group, 1.0, false};
}

at::Tensor forward(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, int64_t group) {
  const c10::cuda::CUDAGuard guard(input.device());
  const Geometry s = geometry_of(input, group);
  at::Tensor output = at::empty_like(input);
  const int64_t blocks = (output.numel() + kThreads - 1) / kThreads;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "plain_forward", [&] {
        forward_kernel<scalar_t, at::opmath_type<scalar_t>>
            <<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
                s, input.const_data_ptr<scalar_t>(), offset.const_data_ptr<scalar_t>(),
                mask.const_data_ptr<scalar_t>(), output.mutable_data_ptr<scalar_t>());
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return output;
}

std::vector<at::Tensor> backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& mask, int64_t group) {
  const c10::cuda::CUDAGuard guard(input.device());
  const Geometry s = geometry_of(input, group);
  at::Tensor grad_input = at::zeros(
      input.sizes(), input.options().dtype(at::toOpMathType(input.scalar_type())));
  at::Tensor grad_offset = at::empty_like(offset), grad_mask = at::empty_like(mask);
  const auto threads = static_cast<unsigned>(s.group_channels);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "plain_backward", [&] {
        using acc_t = at::opmath_type<scalar_t>;
        backward_kernel<scalar_t, acc_t>
            <<<s.out_pixels() * s.group, threads, 3 * threads * sizeof(acc_t),
               c10::cuda::getCurrentCUDAStream()>>>(
                s, grad_output.const_data_ptr<scalar_t>(), input.const_data_ptr<scalar_t>(),
                offset.const_data_ptr<scalar_t>(), mask.const_data_ptr<scalar_t>(),
                grad_input.mutable_data_ptr<acc_t>(), grad_offset.mutable_data_ptr<scalar_t>(),
                grad_mask.mutable_data_ptr<scalar_t>());
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return {grad_input.to(input.scalar_type()), grad_offset, grad_mask};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
}
