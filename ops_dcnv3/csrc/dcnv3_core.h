// DCNv3 for one output pixel and one group: the arithmetic that the CPU and CUDA kernels share.
//
// InternImage (arXiv 2211.05778), section 3.1, equation 2; conventions as in
// functions/reference.py. Nothing here knows about tensors, threads or devices.
//
//   scalar_t  type of the tensors in memory
//   acc_t     type of all arithmetic: double for double, else float
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define DCNV3_HOST_DEVICE __host__ __device__ inline
#else
#define DCNV3_HOST_DEVICE inline
#endif

namespace dcnv3 {

// Sizes of one call. 64-bit throughout: a detection batch exceeds 2^31 elements.
struct Geometry {
  int64_t batch, height, width;   // input
  int64_t out_height, out_width;  // output
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  int64_t group, group_channels;
  double offset_scale;
  bool remove_center;

  DCNV3_HOST_DEVICE int64_t points() const { return kernel_h * kernel_w - (remove_center ? 1 : 0); }
  DCNV3_HOST_DEVICE int64_t channels() const { return group * group_channels; }
  DCNV3_HOST_DEVICE int64_t out_pixels() const { return batch * out_height * out_width; }
};

// Where the points of one output pixel and group lie, in elements of the tensor that holds them:
// offsets and masks are two tensors, or one in either of the orders of `dcnv3_fused`.
struct PointLayout {
  int64_t offset_pixel, offset_group;  // steps from one output pixel and one group to the next
  int64_t mask_pixel, mask_group;
  bool softmax;  // the masks are logits, to be normalised over the points of a group
};

inline PointLayout separate_layout(const Geometry& s) {
  const int64_t points = s.points();
  return {2 * s.group * points, 2 * points, s.group * points, points, false};
}

// One tensor with `last` entries per output pixel. The masks begin at `fused_mask_start`.
inline PointLayout fused_layout(const Geometry& s, int64_t last, bool softmax, bool interleaved) {
  const int64_t points = s.points();
  return {last, (interleaved ? 3 : 2) * points, last, (interleaved ? 3 : 1) * points, softmax};
}

inline int64_t fused_mask_start(const Geometry& s, bool interleaved) {
  return 2 * s.points() * (interleaved ? 1 : s.group);
}

// The four neighbours of one sampling point: top-left, top-right, bottom-left, bottom-right.
template <typename acc_t>
struct Sample {
  bool inside;         // the point lies in the open box (-1, W) x (-1, H)
  bool valid[4];       // the neighbour lies in the image
  int64_t pixel[4];    // its index y * W + x (only where valid)
  acc_t weight[4];     // bilinear weight
  acc_t right, below;  // distance to the left and to the upper neighbour, in [0, 1)
};

template <typename acc_t>
DCNV3_HOST_DEVICE Sample<acc_t> locate(
    const Geometry& s, int64_t out_y, int64_t out_x, int64_t kernel_y, int64_t kernel_x,
    acc_t offset_x, acc_t offset_y) {
  const int64_t centre_x = (s.dilation_w * (s.kernel_w - 1)) / 2;
  const int64_t centre_y = (s.dilation_h * (s.kernel_h - 1)) / 2;
  const acc_t scale = static_cast<acc_t>(s.offset_scale);
  const acc_t first_x =
      static_cast<acc_t>(centre_x - s.pad_w + out_x * s.stride_w) - static_cast<acc_t>(centre_x) * scale;
  const acc_t first_y =
      static_cast<acc_t>(centre_y - s.pad_h + out_y * s.stride_h) - static_cast<acc_t>(centre_y) * scale;
  const acc_t x = first_x + (static_cast<acc_t>(kernel_x * s.dilation_w) + offset_x) * scale;
  const acc_t y = first_y + (static_cast<acc_t>(kernel_y * s.dilation_h) + offset_y) * scale;

  Sample<acc_t> sample;
  // Written so that a NaN is outside; past this test the conversions to integers are safe.
  sample.inside = x > acc_t(-1) && y > acc_t(-1) && x < static_cast<acc_t>(s.width) &&
                  y < static_cast<acc_t>(s.height);
  if (!sample.inside) return sample;
  const acc_t left = std::floor(x), top = std::floor(y);
  const int64_t x0 = static_cast<int64_t>(left), y0 = static_cast<int64_t>(top);
  sample.right = x - left;
  sample.below = y - top;
  for (int corner = 0; corner < 4; ++corner) {
    const int64_t column = x0 + (corner & 1), row = y0 + (corner >> 1);
    sample.valid[corner] = column >= 0 && column < s.width && row >= 0 && row < s.height;
    sample.pixel[corner] = row * s.width + column;
    sample.weight[corner] = ((corner & 1) ? sample.right : acc_t(1) - sample.right) *
                            ((corner >> 1) ? sample.below : acc_t(1) - sample.below);
  }
  return sample;
}

// Calls visit(t, kernel_y, kernel_x) for every point t in width-major order.
template <typename Visit>
DCNV3_HOST_DEVICE void for_each_point(const Geometry& s, Visit&& visit) {
  int64_t t = 0;
  for (int64_t kernel_x = 0; kernel_x < s.kernel_w; ++kernel_x) {
    for (int64_t kernel_y = 0; kernel_y < s.kernel_h; ++kernel_y) {
      if (s.remove_center && kernel_x == s.kernel_w / 2 && kernel_y == s.kernel_h / 2) continue;
      visit(t, kernel_y, kernel_x);
      ++t;
    }
  }
}

// Dot product with a fixed order of additions: eight running sums, so that compilers can keep them
// in one vector register without being allowed to reorder floating-point sums.
template <typename acc_t, typename a_t, typename b_t>
DCNV3_HOST_DEVICE acc_t dot(const a_t* a, const b_t* b, int64_t n) {
  acc_t lanes[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      lanes[lane] += static_cast<acc_t>(a[i + lane]) * static_cast<acc_t>(b[i + lane]);
    }
  }
  for (int lane = 0; i < n; ++i, ++lane) {
    lanes[lane] += static_cast<acc_t>(a[i]) * static_cast<acc_t>(b[i]);
  }
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
         ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

// Channels [first, first + count) of one group at one output pixel; count <= block.
//   image   input of this batch element, at channel 0          (H, W, C)
//   offset  of this output pixel and group                     (P, 2)
//   mask    of this output pixel and group                     (P)
//   output  of this output pixel, at channel 0                 (C)
template <typename scalar_t, typename acc_t, int block>
DCNV3_HOST_DEVICE void forward_block(
    const Geometry& s, int64_t out_y, int64_t out_x, int64_t g, int64_t first, int64_t count,
    const scalar_t* image, const scalar_t* offset, const scalar_t* mask, scalar_t* output) {
  const int64_t channels = s.channels(), channel = g * s.group_channels + first;
  acc_t sum[block];
  for (int64_t c = 0; c < count; ++c) sum[c] = 0;
  for_each_point(s, [&](int64_t t, int64_t kernel_y, int64_t kernel_x) {
    const Sample<acc_t> sample =
        locate<acc_t>(s, out_y, out_x, kernel_y, kernel_x, static_cast<acc_t>(offset[2 * t]),
                      static_cast<acc_t>(offset[2 * t + 1]));
    if (!sample.inside) return;
    const acc_t modulation = static_cast<acc_t>(mask[t]);
    for (int corner = 0; corner < 4; ++corner) {
      if (!sample.valid[corner]) continue;
      const scalar_t* pixel = image + sample.pixel[corner] * channels + channel;
      const acc_t weight = modulation * sample.weight[corner];
      for (int64_t c = 0; c < count; ++c) sum[c] += weight * static_cast<acc_t>(pixel[c]);
    }
  });
  for (int64_t c = 0; c < count; ++c) output[channel + c] = static_cast<scalar_t>(sum[c]);
}

// All gradients that one output pixel and group cause.
//   grad_output of this output pixel and group                 (group_channels)
//   image       input of this batch element, at this group's first channel
//   grad_image  where the input's gradient is summed, at this group's first channel; pixels are
//               `grad_stride` elements apart
//   add(p, v)   adds v to *p (plainly, or atomically where several threads share grad_image)
template <typename scalar_t, typename acc_t, typename top_t, typename Add>
DCNV3_HOST_DEVICE void backward_pixel(
    const Geometry& s, int64_t out_y, int64_t out_x, const top_t* grad_output,
    const scalar_t* image, const scalar_t* offset, const scalar_t* mask, acc_t* grad_image,
    int64_t grad_stride, scalar_t* grad_offset, scalar_t* grad_mask, Add add) {
  const int64_t channels = s.channels(), depth = s.group_channels;
  for_each_point(s, [&](int64_t t, int64_t kernel_y, int64_t kernel_x) {
    const Sample<acc_t> sample =
        locate<acc_t>(s, out_y, out_x, kernel_y, kernel_x, static_cast<acc_t>(offset[2 * t]),
                      static_cast<acc_t>(offset[2 * t + 1]));
    if (!sample.inside) {
      grad_offset[2 * t] = grad_offset[2 * t + 1] = grad_mask[t] = static_cast<scalar_t>(acc_t(0));
      return;
    }
    const acc_t modulation = static_cast<acc_t>(mask[t]);
    acc_t along[4];  // grad_output . pixel, for each neighbour
    for (int corner = 0; corner < 4; ++corner) {
      along[corner] = 0;
      if (!sample.valid[corner]) continue;
      along[corner] = dot<acc_t>(grad_output, image + sample.pixel[corner] * channels, depth);
      const acc_t weight = modulation * sample.weight[corner];
      acc_t* target = grad_image + sample.pixel[corner] * grad_stride;
      for (int64_t c = 0; c < depth; ++c) {
        add(target + c, weight * static_cast<acc_t>(grad_output[c]));
      }
    }
    const acc_t right = sample.right, below = sample.below;
    const acc_t by_x = (1 - below) * (along[1] - along[0]) + below * (along[3] - along[2]);
    const acc_t by_y = (1 - right) * (along[2] - along[0]) + right * (along[3] - along[1]);
    const acc_t scale = static_cast<acc_t>(s.offset_scale) * modulation;
    grad_offset[2 * t] = static_cast<scalar_t>(scale * by_x);
    grad_offset[2 * t + 1] = static_cast<scalar_t>(scale * by_y);
    grad_mask[t] = static_cast<scalar_t>(
        (sample.weight[0] * along[0] + sample.weight[1] * along[1]) +
        (sample.weight[2] * along[2] + sample.weight[3] * along[3]));
  });
}

}  // namespace dcnv3
