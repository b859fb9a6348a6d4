// The vector kernels, included once per instruction set, inside an unnamed namespace and after that
// set's vectors. For each output pixel they go through its points twice: first vectors of points
// (dcnv3_cpu_points.h), then vectors of channels, group by group. No workspace but arrays of a few
// KiB on the stack.
//
//   Vector    kLanes floats: points
//   Unit      8 floats: channels. Blocks of 16 channels are pairs of units, in an order that suits
//             the storage: BFloat16 puts the even channels in one and the odd channels in the other
//
// A weight of 0 keeps out a pixel only if it is finite. So where a result is not, the exact kernel
// (dcnv3_cpu_exact.cpp) does it again.

#include "dcnv3_cpu_points.h"

constexpr int kUnit = 8, kBlock = 16;

// Whether a block's units hold the even and the odd channels.
template <typename T>
constexpr bool kEvenFirst = false;
template <>
constexpr bool kEvenFirst<BFloat16> = true;

// Addresses of the four neighbours of a point at byte 0.
template <typename Byte>
struct Corners {
  Byte* base[4];
  INLINE Corners(Byte* first, int64_t pixel, int64_t row)
      : base{first, first + pixel, first + row, first + row + pixel} {}
  INLINE Corners(const Corners& other, int64_t shift)
      : base{other.base[0] + shift, other.base[1] + shift, other.base[2] + shift,
             other.base[3] + shift} {}
};

template <typename T>
INLINE const T* as(const char* p) {
  return reinterpret_cast<const T*>(p);
}

// Zeros, or NaN somewhere if one of the numbers is not finite.
template <typename T>
INLINE Unit nothing_or_nan(const T* x, int64_t count) {
  Unit result = unit(0), p, q;
  int64_t c = 0;
  for (; c + kBlock <= count; c += kBlock) {
    load_block(x + c, p, q);
    result = fma(p, unit(0), fma(q, unit(0), result));
  }
  for (; c < count; c += kUnit) {
    const int n = static_cast<int>(count - c < kUnit ? count - c : kUnit);
    result = fma(load_units(x + c, n), unit(0), result);
  }
  return result;
}

// What does not change within a call.
template <typename T>
struct Plan {
  const Call<T>& call;
  Frame frame;
  int points, groups_at_once;
  bool all_groups_follow;  // the groups' points follow each other in memory
  int64_t pixel_bytes, row_bytes;

  INLINE Plan(const Call<T>& c, int64_t tile_pitch) : call(c) {
    const Geometry& s = c.s;
    points = static_cast<int>(s.points());
    pixel_bytes = s.channels() * static_cast<int64_t>(sizeof(T));
    row_bytes = s.width * pixel_bytes;
    groups_at_once = kMaxPoints / points;
    all_groups_follow = c.layout.offset_group == 2 * points && c.layout.mask_group == points;
    frame = {static_cast<float>(s.offset_scale), static_cast<float>(s.width - 2),
             static_cast<float>(s.height - 2), static_cast<float>(s.width),
             static_cast<int32_t>(static_cast<uint32_t>(pixel_bytes)),
             static_cast<int32_t>(static_cast<uint32_t>(tile_pitch))};
  }

  // Fills the undeformed grid of as many groups.
  void grid(Points& a, int64_t groups) const {
    const Geometry& s = call.s;
    int at = 0;
    for (int64_t g = 0; g < groups && g < groups_at_once; ++g) {
      for_each_point(s, [&](int64_t, int64_t kernel_y, int64_t kernel_x) {
        a.grid_x[at] = static_cast<float>(kernel_x * s.dilation_w);
        a.grid_y[at++] = static_cast<float>(kernel_y * s.dilation_h);
      });
    }
    for (; at < kRoom; ++at) a.grid_x[at] = a.grid_y[at] = 0;
  }

  // Calls visit(run) for the groups [first, first + groups) of an output pixel.
  template <typename Visit>
  INLINE void for_each_run(int64_t pixel, int64_t first, int groups, Visit&& visit) const {
    const PointLayout& layout = call.layout;
    const T* offset = call.offset + pixel * layout.offset_pixel + first * layout.offset_group;
    const T* mask = call.mask + pixel * layout.mask_pixel + first * layout.mask_group;
    const int runs = all_groups_follow ? 1 : groups;
    const int count = all_groups_follow ? groups * points : points;
    for (int g = 0; g < runs; ++g) {
      visit(Run<T>{
          offset + g * layout.offset_group, mask + g * layout.mask_group, g * points, count});
    }
  }

  // As many groups after `first` as fit into Points.
  INLINE int groups_from(int64_t first, int64_t last) const {
    return static_cast<int>(last - first < groups_at_once ? last - first : groups_at_once);
  }

  // Asks for what windows and offsets are about to reach a few rows below, which the processor does
  // not foresee: `bytes` of pixels that are `step` bytes apart.
  INLINE void fetch_ahead(
      const char* image, int64_t step, int64_t bytes, int64_t y, int64_t x) const {
    const Geometry& s = call.s;
    const int64_t row = y * s.stride_h - s.pad_h + s.dilation_h * (s.kernel_h - 1) + 4;
    if (row < 0 || row >= s.height) return;
    for (int64_t column = x * s.stride_w; column < (x + 1) * s.stride_w; ++column) {
      if (column >= s.width) return;
      const char* pixel = image + (row * s.width + column) * step;
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(pixel + at, 0, 2);
    }
  }

  template <bool kBackward>
  INLINE void prepare(
      int64_t pixel, int64_t y, int64_t x, int64_t first, int groups, Points& a,
      PointGradients* b) const {
    const Geometry& s = call.s;
    const int64_t centre_x = (s.dilation_w * (s.kernel_w - 1)) / 2;
    const int64_t centre_y = (s.dilation_h * (s.kernel_h - 1)) / 2;
    const float first_x = static_cast<float>(centre_x - s.pad_w + x * s.stride_w) -
                          static_cast<float>(centre_x) * frame.scale;
    const float first_y = static_cast<float>(centre_y - s.pad_h + y * s.stride_h) -
                          static_cast<float>(centre_y) * frame.scale;
    const bool softmax = call.layout.softmax;
    if (softmax) {
      for_each_run(pixel, first, groups, [&](const Run<T>& run) INLINE_LAMBDA {
        softmax_run(run, points, a);
      });
      group_sums(a, groups, points, a.inverse);
    }
    for_each_run(pixel, first, groups, [&](const Run<T>& run) INLINE_LAMBDA {
      locate_run<kBackward>(frame, run, softmax, first_x, first_y, a, b);
    });
  }
};

#include "dcnv3_cpu_forward.h"
#include "dcnv3_cpu_backward.h"

constexpr Level level(const char* name) {
  return {name,
          {forward<float>, backward<float>},
          {forward<Half>, backward<Half>},
          {forward<BFloat16>, backward<BFloat16>}};
}
