// What the kernels share: the sizes of a call, where points lie in memory, and, for the exact CPU
// kernel, where one point samples the input, written out.
//
// InternImage (arXiv 2211.05778), section 3.1, equation 2; conventions as in
// functions/reference.py. Nothing here knows about tensors, threads or devices.
//
// acc_t is the type of all arithmetic: double for double, else float.
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
      static_cast<acc_t>(centre_x - s.pad_w + out_x * s.stride_w) -
      static_cast<acc_t>(centre_x) * scale;
  const acc_t first_y =
      static_cast<acc_t>(centre_y - s.pad_h + out_y * s.stride_h) -
      static_cast<acc_t>(centre_y) * scale;
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

}  // namespace dcnv3
