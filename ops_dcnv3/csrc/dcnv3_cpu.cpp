// CPU kernels. The work is split so that every memory location is written by one task in a fixed
// order: results are bitwise the same for any number of threads.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "dcnv3_op.h"

namespace dcnv3 {

namespace {

constexpr int kChannelBlock = 32;  // running sums kept per output pixel; larger groups take turns
constexpr int64_t kForwardGrain = 64;  // output pixels per task at least

template <typename scalar_t>
void forward_kernel(
    const Geometry& s, const scalar_t* input, const scalar_t* offset, const scalar_t* mask,
    scalar_t* output) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t channels = s.channels(), points = s.points(), plane = s.out_height * s.out_width;
  at::parallel_for(0, s.out_pixels(), kForwardGrain, [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t n = pixel / plane, y = pixel % plane / s.out_width, x = pixel % s.out_width;
      const scalar_t* image = input + n * s.height * s.width * channels;
      for (int64_t g = 0; g < s.group; ++g) {
        const int64_t first_point = (pixel * s.group + g) * points;
        for (int64_t c = 0; c < s.group_channels; c += kChannelBlock) {
          forward_block<scalar_t, acc_t, kChannelBlock>(
              s, y, x, g, c, std::min<int64_t>(kChannelBlock, s.group_channels - c), image,
              offset + 2 * first_point, mask + first_point, output + pixel * channels);
        }
      }
    }
  });
}

// One task is one batch element and group: it owns a channel slice of grad_input and visits the
// output pixels in order. Narrow types sum grad_input in a float plane of that slice.
template <typename scalar_t>
void backward_kernel(
    const Geometry& s, const scalar_t* grad_output, const scalar_t* input, const scalar_t* offset,
    const scalar_t* mask, scalar_t* grad_input, scalar_t* grad_offset, scalar_t* grad_mask) {
  using acc_t = at::opmath_type<scalar_t>;
  constexpr bool in_place = std::is_same_v<scalar_t, acc_t>;
  const int64_t channels = s.channels(), points = s.points(), depth = s.group_channels;
  const int64_t in_plane = s.height * s.width, out_plane = s.out_height * s.out_width;
  at::parallel_for(0, s.batch * s.group, 1, [&](int64_t begin, int64_t end) {
    std::vector<acc_t> sums, top(depth);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / s.group, g = task % s.group;
      const int64_t slice = n * in_plane * channels + g * depth;
      acc_t* grad_image;
      int64_t grad_stride;
      if constexpr (in_place) {
        grad_image = grad_input + slice;
        grad_stride = channels;
      } else {
        sums.assign(in_plane * depth, acc_t(0));
        grad_image = sums.data();
        grad_stride = depth;
      }
      for (int64_t p = 0; p < out_plane; ++p) {
        const int64_t pixel = n * out_plane + p, first_point = (pixel * s.group + g) * points;
        const scalar_t* pixel_grad = grad_output + pixel * channels + g * depth;
        for (int64_t c = 0; c < depth; ++c) top[c] = static_cast<acc_t>(pixel_grad[c]);
        backward_pixel<scalar_t, acc_t>(
            s, p / s.out_width, p % s.out_width, top.data(), input + slice,
            offset + 2 * first_point, mask + first_point, grad_image, grad_stride,
            grad_offset + 2 * first_point, grad_mask + first_point,
            [](acc_t* address, acc_t value) { *address += value; });
      }
      if constexpr (!in_place) {
        for (int64_t q = 0; q < in_plane; ++q) {
          for (int64_t c = 0; c < depth; ++c) {
            grad_input[slice + q * channels + c] = static_cast<scalar_t>(sums[q * depth + c]);
          }
        }
      }
    }
  });
}

at::Tensor forward_cpu(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, DCNV3_ARGUMENTS) {
  const Geometry s = check(input, offset, mask, DCNV3_ARGUMENT_NAMES);
  const at::Tensor input_ = input.contiguous(), offset_ = offset.contiguous(),
                   mask_ = mask.contiguous();
  at::Tensor output =
      at::empty({s.batch, s.out_height, s.out_width, s.channels()}, input_.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "dcnv3_forward_cpu", [&] {
        forward_kernel<scalar_t>(
            s, input_.const_data_ptr<scalar_t>(), offset_.const_data_ptr<scalar_t>(),
            mask_.const_data_ptr<scalar_t>(), output.mutable_data_ptr<scalar_t>());
      });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& mask, DCNV3_ARGUMENTS) {
  const Geometry s = check(input, offset, mask, DCNV3_ARGUMENT_NAMES);
  check_grad_output(grad_output, input, s);
  const auto contiguous = at::MemoryFormat::Contiguous;
  const at::Tensor grad_output_ = grad_output.contiguous(), input_ = input.contiguous(),
                   offset_ = offset.contiguous(), mask_ = mask.contiguous();
  at::Tensor grad_input = at::zeros_like(input_, {}, {}, {}, {}, contiguous);
  at::Tensor grad_offset = at::empty_like(offset_, {}, {}, {}, {}, contiguous);
  at::Tensor grad_mask = at::empty_like(mask_, {}, {}, {}, {}, contiguous);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "dcnv3_backward_cpu", [&] {
        backward_kernel<scalar_t>(
            s, grad_output_.const_data_ptr<scalar_t>(), input_.const_data_ptr<scalar_t>(),
            offset_.const_data_ptr<scalar_t>(), mask_.const_data_ptr<scalar_t>(),
            grad_input.mutable_data_ptr<scalar_t>(), grad_offset.mutable_data_ptr<scalar_t>(),
            grad_mask.mutable_data_ptr<scalar_t>());
      });
  return {grad_input, grad_offset, grad_mask};
}

}  // namespace

TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("dcnv3", forward_cpu);
  m.impl("dcnv3_backward", backward_cpu);
}

}  // namespace dcnv3
