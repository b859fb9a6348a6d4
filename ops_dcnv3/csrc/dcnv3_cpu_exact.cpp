// The exact CPU kernel: one point after the other, with every test written out. It runs double
// precision, what the vector kernels cannot index, and the few pixels whose vectors are not finite.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "dcnv3_cpu.h"

namespace dcnv3 {

namespace {

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

}  // namespace

Half::operator float() const {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) return from_bits(sign | to_bits(static_cast<float>(fraction) * 0x1p-24f));
  return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

Half::Half(float x) {
  const uint32_t sign = to_bits(x) >> 16 & 0x8000, magnitude = to_bits(x) & 0x7fffffff;
  uint32_t result;
  if (magnitude > 0x7f800000) {
    result = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // rounds to 2^16
    result = 0x7c00;
  } else if (magnitude < 0x38800000) {  // subnormal: adding 0.5 rounds at 2^-24
    result = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000;
  } else {
    result = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  bits = static_cast<uint16_t>(sign | result);
}

BFloat16::operator float() const { return from_bits(static_cast<uint32_t>(bits) << 16); }

BFloat16::BFloat16(float x) {
  const uint32_t all = to_bits(x);
  bits = x != x ? 0x7fc0 : static_cast<uint16_t>((all + 0x7fff + (all >> 16 & 1)) >> 16);
}

namespace {

// The masks of one output pixel and group: as they are, or the softmax of them.
template <typename T, typename acc_t>
std::vector<acc_t> normalised(const T* masks, int64_t points, bool softmax) {
  std::vector<acc_t> result(points);
  for (int64_t t = 0; t < points; ++t) result[t] = static_cast<acc_t>(masks[t]);
  if (!softmax || points == 0) return result;
  const acc_t largest = *std::max_element(result.begin(), result.end());
  acc_t sum = 0;
  for (acc_t& mask : result) sum += mask = std::exp(mask - largest);
  for (acc_t& mask : result) mask /= sum;
  return result;
}

// The position of an output pixel.
struct Site {
  int64_t n, y, x;
  Site(const Geometry& s, int64_t pixel)
      : n(pixel / (s.out_height * s.out_width)),
        y(pixel / s.out_width % s.out_height),
        x(pixel % s.out_width) {}
};

// Calls visit(t, sample) for the points of one output pixel and group that lie in the image.
template <typename T, typename Visit>
void for_each_sample(const Geometry& s, const Site& site, const T* offset, Visit&& visit) {
  using acc_t = Accumulator<T>;
  for_each_point(s, [&](int64_t t, int64_t kernel_y, int64_t kernel_x) {
    const Sample<acc_t> sample = locate<acc_t>(
        s, site.y, site.x, kernel_y, kernel_x, static_cast<acc_t>(offset[2 * t]),
        static_cast<acc_t>(offset[2 * t + 1]));
    if (sample.inside) visit(t, sample);
  });
}

}  // namespace

template <typename T>
void exact_forward(const Call<T>& call, int64_t pixel, int64_t g) {
  using acc_t = Accumulator<T>;
  const Geometry& s = call.s;
  const PointLayout& layout = call.layout;
  const Site site(s, pixel);
  const int64_t channels = s.channels(), depth = s.group_channels;
  const T* image = call.input + site.n * s.height * s.width * channels + g * depth;
  const T* offset = call.offset + pixel * layout.offset_pixel + g * layout.offset_group;
  const std::vector<acc_t> masks = normalised<T, acc_t>(
      call.mask + pixel * layout.mask_pixel + g * layout.mask_group, s.points(), layout.softmax);
  std::vector<acc_t> sum(depth, acc_t(0)), value(depth);
  for_each_sample(s, site, offset, [&](int64_t t, const Sample<acc_t>& sample) {
    std::fill(value.begin(), value.end(), acc_t(0));
    for (int corner = 0; corner < 4; ++corner) {
      if (!sample.valid[corner]) continue;
      const T* values = image + sample.pixel[corner] * channels;
      for (int64_t c = 0; c < depth; ++c) {
        value[c] += sample.weight[corner] * static_cast<acc_t>(values[c]);
      }
    }
    for (int64_t c = 0; c < depth; ++c) sum[c] += masks[t] * value[c];
  });
  T* output = call.output + pixel * channels + g * depth;
  for (int64_t c = 0; c < depth; ++c) output[c] = static_cast<T>(sum[c]);
}

template <typename T>
void exact_backward(
    const Call<T>& call, int64_t pixel, int64_t g, Accumulator<T>* grad_image, int64_t grad_stride,
    bool even_first) {
  using acc_t = Accumulator<T>;
  const Geometry& s = call.s;
  const PointLayout& layout = call.layout;
  const Site site(s, pixel);
  const int64_t channels = s.channels(), depth = s.group_channels, points = s.points();
  const T* image = call.input + site.n * s.height * s.width * channels + g * depth;
  const T* top = call.grad_output + pixel * channels + g * depth;
  const int64_t first_offset = pixel * layout.offset_pixel + g * layout.offset_group;
  const int64_t first_mask = pixel * layout.mask_pixel + g * layout.mask_group;
  const std::vector<acc_t> masks =
      normalised<T, acc_t>(call.mask + first_mask, points, layout.softmax);
  T* grad_offset = call.grad_offset + first_offset;
  std::vector<acc_t> along_mask(points, acc_t(0));
  for (int64_t i = 0; i < 2 * points; ++i) grad_offset[i] = static_cast<T>(0.f);
  for_each_sample(s, site, call.offset + first_offset, [&](int64_t t, const Sample<acc_t>& sample) {
    acc_t along[4] = {0, 0, 0, 0};  // grad_output . pixel, for each neighbour
    for (int corner = 0; corner < 4; ++corner) {
      if (!sample.valid[corner]) continue;
      const T* values = image + sample.pixel[corner] * channels;
      const acc_t weight = masks[t] * sample.weight[corner];
      for (int64_t c = 0; c < depth; ++c) {
        along[corner] += static_cast<acc_t>(top[c]) * static_cast<acc_t>(values[c]);
      }
      if (grad_image == nullptr) continue;
      acc_t* target = grad_image + sample.pixel[corner] * grad_stride;
      for (int64_t c = 0; c < depth; ++c) {
        const bool swapped = even_first && c < depth / 16 * 16;
        const int64_t kept_at = swapped ? c / 16 * 16 + c % 2 * 8 + c % 16 / 2 : c;
        target[kept_at] += weight * static_cast<acc_t>(top[c]);
      }
    }
    const acc_t right = sample.right, below = sample.below;
    const acc_t by_x = (1 - below) * (along[1] - along[0]) + below * (along[3] - along[2]);
    const acc_t by_y = (1 - right) * (along[2] - along[0]) + right * (along[3] - along[1]);
    const acc_t scale = static_cast<acc_t>(s.offset_scale) * masks[t];
    grad_offset[2 * t] = static_cast<T>(scale * by_x);
    grad_offset[2 * t + 1] = static_cast<T>(scale * by_y);
    for (int corner = 0; corner < 4; ++corner) {
      if (sample.valid[corner]) along_mask[t] += sample.weight[corner] * along[corner];
    }
  });
  acc_t mean = 0;
  for (int64_t t = 0; t < points; ++t) mean += masks[t] * along_mask[t];
  for (int64_t t = 0; t < points; ++t) {
    const acc_t gradient = layout.softmax ? masks[t] * (along_mask[t] - mean) : along_mask[t];
    call.grad_mask[first_mask + t] = static_cast<T>(gradient);
  }
}

template <typename T>
void exact_forward_pixels(const Call<T>& call, int64_t begin, int64_t end) {
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    for (int64_t g = 0; g < call.s.group; ++g) exact_forward(call, pixel, g);
  }
}

template <typename T>
void exact_backward_groups(
    const Call<T>& call, int64_t n, int64_t first, int64_t last, Accumulator<T>* tile) {
  constexpr bool in_place = std::is_same_v<T, Accumulator<T>>;
  const Geometry& s = call.s;
  const int64_t channels = s.channels(), depth = s.group_channels, width = (last - first) * depth;
  const int64_t in_plane = s.height * s.width, out_plane = s.out_height * s.out_width;
  T* slice = call.grad_input + n * in_plane * channels + first * depth;
  Accumulator<T>* sums = tile;
  int64_t stride = width;
  if constexpr (in_place) {
    sums = slice;
    stride = channels;
  }
  for (int64_t q = 0; q < in_plane; ++q) std::fill_n(sums + q * stride, width, 0);
  for (int64_t pixel = n * out_plane; pixel < (n + 1) * out_plane; ++pixel) {
    for (int64_t g = first; g < last; ++g) {
      exact_backward(call, pixel, g, sums + (g - first) * depth, stride, false);
    }
  }
  if constexpr (!in_place) {
    for (int64_t q = 0; q < in_plane; ++q) {
      for (int64_t c = 0; c < width; ++c) {
        slice[q * channels + c] = static_cast<T>(sums[q * width + c]);
      }
    }
  }
}

#define INSTANTIATE(T)                                                                        \
  template void exact_forward(const Call<T>&, int64_t, int64_t);                              \
  template void exact_backward(const Call<T>&, int64_t, int64_t, Accumulator<T>*, int64_t, bool); \
  template void exact_forward_pixels(const Call<T>&, int64_t, int64_t);                       \
  template void exact_backward_groups(const Call<T>&, int64_t, int64_t, int64_t, Accumulator<T>*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace dcnv3
