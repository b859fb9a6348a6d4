// What the CUDA kernels share: storage types, vectors of channels, sampling points, and which
// output pixel and group a lane works on. No PyTorch in here: tests/cuda_on_cpu.cpp runs the same
// source on the CPU.
//
//   scalar_t  type of the tensors in memory
//   acc_t     type of all arithmetic: double for double, else float
//   index_t   int where everything in one image can be counted with it, else int64_t
//   vec       channels that one lane loads at once: 16 bytes, or 1 where that does not divide
#pragma once

#include "dcnv3_core.h"
#include "dcnv3_cuda_plan.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DCNV3_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define DCNV3_CHECK_ALIGNMENT(address, bytes)
#endif

namespace dcnv3 {

constexpr unsigned kAllLanes = 0xffffffffu;

template <typename scalar_t>
struct Storage {
  using acc_t = float;
};
template <>
struct Storage<double> {
  using acc_t = double;
};

template <typename acc_t, typename scalar_t>
__device__ inline acc_t widen(scalar_t value) {
  return static_cast<acc_t>(value);
}
template <typename scalar_t, typename acc_t>
__device__ inline scalar_t narrow(acc_t value) {
  return static_cast<scalar_t>(value);
}
#if defined(__CUDACC__)  // spelled out: PyTorch's build flags remove the implicit conversions
template <>
__device__ inline float widen<float, __half>(__half value) {
  return __half2float(value);
}
template <>
__device__ inline float widen<float, __nv_bfloat16>(__nv_bfloat16 value) {
  // not __bfloat16_as_ushort, which older toolkits have from sm_80 on only
  const auto bits = *reinterpret_cast<const unsigned short*>(&value);
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
template <>
__device__ inline __half narrow<__half, float>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16, float>(float value) {
  return __float2bfloat16_rn(value);
}
__device__ inline float exponential(float value) { return __expf(value); }
__device__ inline double exponential(double value) { return exp(value); }
#else
template <typename acc_t>
acc_t exponential(acc_t value) {
  return std::exp(value);
}
#endif

// Values that are loaded and stored with one instruction.
template <typename T, int count>
struct alignas(sizeof(T) * count) Pack {
  T at[count];
};

template <typename T, int count>
__device__ inline Pack<T, count> load(const T* address) {
  DCNV3_CHECK_ALIGNMENT(address, sizeof(T) * count);
  return *reinterpret_cast<const Pack<T, count>*>(address);
}

template <typename T, int count, typename acc_t>
__device__ inline void unpack(const Pack<T, count>& pack, acc_t* values) {
#pragma unroll
  for (int i = 0; i < count; ++i) values[i] = widen<acc_t>(pack.at[i]);
}
#if defined(__CUDACC__)  // in pairs: one instruction per value, and fewer registers
template <int count>
__device__ inline void unpack(const Pack<__half, count>& pack, float* values) {
  if constexpr (count == 1) {
    values[0] = widen<float>(pack.at[0]);
  } else {
    const auto* pairs = reinterpret_cast<const __half2*>(&pack);
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const float2 both = __half22float2(pairs[i]);
      values[2 * i] = both.x;
      values[2 * i + 1] = both.y;
    }
  }
}
// A bfloat16 is the upper half of a float.
template <int count>
__device__ inline void unpack(const Pack<__nv_bfloat16, count>& pack, float* values) {
  if constexpr (count == 1) {
    values[0] = widen<float>(pack.at[0]);
  } else {
    const auto* pairs = reinterpret_cast<const unsigned*>(&pack);
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      values[2 * i] = __uint_as_float(pairs[i] << 16);
      values[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
  }
}
#endif

template <int count, typename scalar_t, typename acc_t>
__device__ inline void store(scalar_t* address, const acc_t* values) {
  Pack<scalar_t, count> pack;
#pragma unroll
  for (int i = 0; i < count; ++i) pack.at[i] = narrow<scalar_t>(values[i]);
  DCNV3_CHECK_ALIGNMENT(address, sizeof(scalar_t) * count);
  *reinterpret_cast<Pack<scalar_t, count>*>(address) = pack;
}

// Four values of one sampling point. In shared memory: one vector access each way.
template <typename T>
struct alignas(16) Four {
  T at[4];
};

// value / divisor for 0 <= value < 2^20: exact, because the quotient of value + 0.5 stays further
// from every integer than the two roundings reach.
__device__ inline int quotient(int value, float reciprocal) {
  return static_cast<int>((static_cast<float>(value) + 0.5f) * reciprocal);
}

// One output pixel and group, as the lanes see it that work on it.
template <typename acc_t>
struct Site {
  acc_t first_x, first_y;   // position of the window's first point without its offset
  int64_t offset, mask;     // where its points' offsets (x, y) and masks begin
  acc_t most, reciprocal;   // softmax: the largest logit, and 1 / sum of exponentials
};

template <typename acc_t, typename index_t>
__device__ inline Site<acc_t> locate_site(
    const Geometry& s, const PointLayout& layout, int64_t pixel, index_t out_y, index_t out_x,
    int64_t group) {
  const index_t centre_x = static_cast<index_t>(s.dilation_w * (s.kernel_w - 1)) / 2;
  const index_t centre_y = static_cast<index_t>(s.dilation_h * (s.kernel_h - 1)) / 2;
  const acc_t scale = static_cast<acc_t>(s.offset_scale);
  const index_t x =
      centre_x - static_cast<index_t>(s.pad_w) + out_x * static_cast<index_t>(s.stride_w);
  const index_t y =
      centre_y - static_cast<index_t>(s.pad_h) + out_y * static_cast<index_t>(s.stride_h);
  Site<acc_t> site;
  site.first_x = static_cast<acc_t>(x) - static_cast<acc_t>(centre_x) * scale;
  site.first_y = static_cast<acc_t>(y) - static_cast<acc_t>(centre_y) * scale;
  site.offset = pixel * layout.offset_pixel + group * layout.offset_group;
  site.mask = pixel * layout.mask_pixel + group * layout.mask_group;
  site.most = 0;
  site.reciprocal = 1;
  return site;
}

// The weights of a softmax need the sum over all points. Every lane reads all logits: they are few.
template <typename scalar_t, typename acc_t>
__device__ inline void normalise(Site<acc_t>& site, const scalar_t* logits, int64_t points) {
  acc_t most = -INFINITY, sum = 0;
  for (int64_t t = 0; t < points; ++t) most = std::fmax(most, widen<acc_t>(logits[t]));
  for (int64_t t = 0; t < points; ++t) sum += exponential(widen<acc_t>(logits[t]) - most);
  site.most = most;
  site.reciprocal = 1 / sum;
}

template <typename acc_t>
__device__ inline acc_t weight_of(const Site<acc_t>& site, const PointLayout& layout, acc_t mask) {
  return layout.softmax ? exponential(mask - site.most) * site.reciprocal : mask;
}

// One sampling point: its upper left neighbour and the distance to it.
template <typename acc_t, typename index_t>
struct Point {
  bool inside;  // in the open box (-1, W) x (-1, H); the rest is only set then
  index_t left, top;
  acc_t right, below;  // in [0, 1)
};

template <typename acc_t, typename index_t, typename scalar_t>
__device__ inline Point<acc_t, index_t> locate_point(
    const Geometry& s, const Site<acc_t>& site, index_t t, const Pack<scalar_t, 2>& offset) {
  if (s.remove_center) {
    const auto centre = static_cast<index_t>(s.kernel_w / 2 * s.kernel_h + s.kernel_h / 2);
    if (t >= centre) ++t;
  }
  const auto kernel_h = static_cast<index_t>(s.kernel_h);
  index_t column;
  if constexpr (sizeof(index_t) == sizeof(int)) {
    column = quotient(t, 1.0f / static_cast<float>(kernel_h));
  } else {
    column = t / kernel_h;
  }
  const index_t row = t - column * kernel_h;
  const acc_t scale = static_cast<acc_t>(s.offset_scale);
  const auto grid_x = static_cast<acc_t>(column * static_cast<index_t>(s.dilation_w));
  const auto grid_y = static_cast<acc_t>(row * static_cast<index_t>(s.dilation_h));
  const acc_t x = site.first_x + (grid_x + widen<acc_t>(offset.at[0])) * scale;
  const acc_t y = site.first_y + (grid_y + widen<acc_t>(offset.at[1])) * scale;
  Point<acc_t, index_t> point;
  // Written so that a NaN is outside; past this test the conversions to integers are safe.
  point.inside = x > acc_t(-1) && y > acc_t(-1) && x < static_cast<acc_t>(s.width) &&
                 y < static_cast<acc_t>(s.height);
  if (point.inside) {
    const acc_t left = std::floor(x), top = std::floor(y);
    point.left = static_cast<index_t>(left);
    point.top = static_cast<index_t>(top);
    point.right = x - left;
    point.below = y - top;
  } else {
    point.left = point.top = -2;  // no neighbour is in the image
    point.right = point.below = 0;
  }
  return point;
}

// Where the neighbours' pixels lie, from channel 0 of the image on; -1 for one outside the image.
// Order: top left, top right, bottom left, bottom right. Returns whether all four are inside.
template <typename acc_t, typename index_t>
__device__ inline bool neighbours(
    const Geometry& s, const Point<acc_t, index_t>& point, index_t step, Four<index_t>& corners) {
  const auto width = static_cast<index_t>(s.width), height = static_cast<index_t>(s.height);
  const bool first_column = point.left >= 0, last_column = point.left + 1 < width;
  const bool first_row = point.top >= 0, last_row = point.top + 1 < height;
  const bool any = point.inside;
  const index_t top = any ? point.top : 0, left = any ? point.left : 0;  // no overflow
  const index_t upper = (top * width + left) * step, lower = upper + width * step;
  corners.at[0] = any && first_row && first_column ? upper : -1;
  corners.at[1] = any && first_row && last_column ? upper + step : -1;
  corners.at[2] = any && last_row && first_column ? lower : -1;
  corners.at[3] = any && last_row && last_column ? lower + step : -1;
  return any && first_row && first_column && last_row && last_column;
}

// The offset (x, y) of a point, with one load where the host found pairs aligned.
template <typename scalar_t>
__device__ inline Pack<scalar_t, 2> load_offset(const scalar_t* pair, bool aligned) {
  if (aligned) return load<scalar_t, 2>(pair);
  return {{pair[0], pair[1]}};
}

// The site of this lane. The lanes of a warp stay together: where a warp has fewer sites than
// slots, the last one is worked on by several slots and is `live` in one of them only.
template <typename index_t>
struct Place {
  int64_t n;
  index_t y, x;
  int64_t unit;  // a group, or a part of one that has many channels
  bool live;
};

// False if this warp has nothing to do.
template <typename index_t>
__device__ inline bool find_place(
    const Geometry& s, const SitePlan& plan, int slot, int slots, Place<index_t>& place) {
  const int64_t block = blockIdx.x, tile_of_batch = block / plan.slices;
  const int64_t slice = block - tile_of_batch * plan.slices;
  place.n = tile_of_batch / plan.tiles;
  const int64_t tile = tile_of_batch - place.n * plan.tiles, tile_row = tile / plan.tiles_x;
  const int64_t y = tile_row * plan.tile_h, x = (tile - tile_row * plan.tiles_x) * plan.tile_w;
  const auto rows =
      static_cast<int>(s.out_height - y < plan.tile_h ? s.out_height - y : plan.tile_h);
  const auto columns =
      static_cast<int>(s.out_width - x < plan.tile_w ? s.out_width - x : plan.tile_w);
  const int64_t first_unit = slice * plan.units_per_slice, units_left = plan.units - first_unit;
  const auto units =
      static_cast<int>(units_left < plan.units_per_slice ? units_left : plan.units_per_slice);
  const int items = rows * columns * units;
  const int first = static_cast<int>(threadIdx.x) / kWarp * slots;
  if (first >= items) return false;
  place.live = first + slot < items;
  const int item = place.live ? first + slot : items - 1;
  const int pixel = quotient(item, 1.0f / static_cast<float>(units));
  const int row = quotient(pixel, 1.0f / static_cast<float>(columns));
  place.unit = first_unit + (item - pixel * units);
  place.y = static_cast<index_t>(y) + row;
  place.x = static_cast<index_t>(x) + (pixel - row * columns);
  return true;
}

}  // namespace dcnv3
