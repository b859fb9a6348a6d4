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

// Sums of kBlocks * 16 channels of one group. Each neighbour (or pair of them) has its own sums.
template <int kBlocks, typename T>
INLINE void sample_blocks(
    const Points& a, int first, int points, float inverse, const Corners<const char>& image,
    T* output, Unit& spoiled) {
  constexpr int kSets = kBlocks == 1 ? 4 : kBlocks == 2 ? 2 : 1;
  Unit sum[kSets][2 * kBlocks];
  for (int set = 0; set < kSets; ++set) {
    for (int u = 0; u < 2 * kBlocks; ++u) sum[set][u] = unit(0);
  }
  for (int t = 0; t < points; ++t) {
    const uint64_t where = a.where[first + t];
    UNROLL for (int corner = 0; corner < 4; ++corner) {
      const Unit weight = unit(a.weight[corner][first + t]);
      UNROLL for (int block = 0; block < kBlocks; ++block) {
        Unit p, q;
        load_block(as<T>(image.base[corner] + where) + kBlock * block, p, q);
        Unit* mine = sum[corner % kSets] + 2 * block;
        mine[0] = fma(weight, p, mine[0]);
        mine[1] = fma(weight, q, mine[1]);
      }
    }
  }
  for (int block = 0; block < kBlocks; ++block) {
    Unit p = sum[0][2 * block], q = sum[0][2 * block + 1];
    for (int set = 1; set < kSets; ++set) {
      p = p + sum[set][2 * block];
      q = q + sum[set][2 * block + 1];
    }
    p = p * unit(inverse);
    q = q * unit(inverse);
    spoiled = fma(p, unit(0), fma(q, unit(0), spoiled));
    store_block(output + kBlock * block, p, q);
  }
}

// The same for the last `count` <= 8 channels.
template <typename T>
NOINLINE void sample_rest(
    const Points& a, int first, int points, float inverse, const Corners<const char>& image,
    int count, T* output, Unit& spoiled) {
  Unit sum[4] = {unit(0), unit(0), unit(0), unit(0)};
  for (int t = first; t < first + points; ++t) {
    for (int corner = 0; corner < 4; ++corner) {
      const Unit p = load_units(as<T>(image.base[corner] + a.where[t]), count);
      sum[corner] = fma(unit(a.weight[corner][t]), p, sum[corner]);
    }
  }
  const Unit total = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * unit(inverse);
  spoiled = fma(total, unit(0), spoiled);
  store_units(output, count, total);
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
    groups_at_once = points > 0 ? kMaxPoints / points : kMaxPoints;
    all_groups_follow = c.layout.offset_group == 2 * points && c.layout.mask_group == points;
    frame = {static_cast<float>(s.offset_scale), static_cast<float>(s.width - 2),
             static_cast<float>(s.height - 2), static_cast<float>(s.width),
             static_cast<int32_t>(static_cast<uint32_t>(pixel_bytes)),
             static_cast<int32_t>(static_cast<uint32_t>(tile_pitch)), points};
  }

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

  // Asks for the pixels that the row of windows at an output pixel is about to reach, and a few
  // rows of offset more: the processor does not foresee them.
  INLINE void fetch_ahead(const char* image, int64_t bytes, int64_t y, int64_t x) const {
    const Geometry& s = call.s;
    const int64_t row = y * s.stride_h - s.pad_h + s.dilation_h * (s.kernel_h - 1) + 4;
    if (row >= s.height || (x + 1) * s.stride_w > s.width) return;
    const char* first = image + (row * s.width + x * s.stride_w) * bytes;
    for (int64_t at = 0; at < s.stride_w * bytes; at += 64) __builtin_prefetch(first + at, 0, 2);
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

template <typename T>
void forward(const Call<T>& call, int64_t begin, int64_t end) {
  const Geometry& s = call.s;
  const Plan<T> plan(call, 0);
  const int64_t plane = s.out_height * s.out_width, channels = s.channels();
  Points a;
  plan.grid(a, s.group);
  for (int g = 0; g < kRoom; ++g) a.inverse[g] = 1;
  int64_t n = begin / plane, y = begin % plane / s.out_width, x = begin % s.out_width;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const char* image = reinterpret_cast<const char*>(call.input + n * s.height * s.width * channels);
    T* output = call.output + pixel * channels;
    plan.fetch_ahead(image, plan.pixel_bytes, y, x);
    for (int64_t first = 0; first < s.group; first += plan.groups_at_once) {
      const int64_t left = s.group - first;
      const int groups = static_cast<int>(left < plan.groups_at_once ? left : plan.groups_at_once);
      plan.template prepare<false>(pixel, y, x, first, groups, a, nullptr);
      Unit spoiled = unit(0);
      for (int g = 0; g < groups; ++g) {
        const int point = g * plan.points;
        const float inverse = a.inverse[g];
        int64_t c = (first + g) * s.group_channels;
        const int64_t stop = c + s.group_channels;
        const auto corners = [&] INLINE_LAMBDA {
          return Corners<const char>(
              image + c * static_cast<int64_t>(sizeof(T)), plan.pixel_bytes, plan.row_bytes);
        };
        for (; c + 4 * kBlock <= stop; c += 4 * kBlock) {
          sample_blocks<4>(a, point, plan.points, inverse, corners(), output + c, spoiled);
        }
        if (c + 2 * kBlock <= stop) {
          sample_blocks<2>(a, point, plan.points, inverse, corners(), output + c, spoiled);
          c += 2 * kBlock;
        }
        if (c + kBlock <= stop) {
          sample_blocks<1>(a, point, plan.points, inverse, corners(), output + c, spoiled);
          c += kBlock;
        }
        for (; c < stop; c += kUnit) {
          const int count = static_cast<int>(stop - c < kUnit ? stop - c : kUnit);
          sample_rest(a, point, plan.points, inverse, corners(), count, output + c, spoiled);
        }
      }
      if (any_nan_unit(spoiled)) {
        for (int64_t g = first; g < first + groups; ++g) {
          const T* result = output + g * s.group_channels;
          if (any_nan_unit(nothing_or_nan(result, s.group_channels))) exact_forward(call, pixel, g);
        }
      }
    }
    if (++x == s.out_width) {
      x = 0;
      if (++y == s.out_height) y = 0, ++n;
    }
  }
}

// --- backward -------------------------------------------------------------------------------------

// Adds weight * top to a block of the sums.
INLINE void add_block(char* sums, Unit weight, Unit p, Unit q) {
  float* address = reinterpret_cast<float*>(sums);
  store_unit(address, fma(weight, p, load_unit(address)));
  store_unit(address + kUnit, fma(weight, q, load_unit(address + kUnit)));
}

// One output pixel and group with kBlocks * 16 channels: the dot products of its gradient with the
// neighbours of kPoints points, and the sums of the input's gradient. `scaled` is the gradient
// divided by the sum of the masks.
template <int kPoints, int kBlocks, typename T>
INLINE void spread_points(
    const Points& a, const uint32_t* tile_where, int point, const Corners<const char>& image,
    const Corners<char>& sums, const Unit* top, const Unit* scaled, float* dots) {
  Unit dot[4 * kPoints];
  UNROLL for (int t = 0; t < kPoints; ++t) {
    const uint64_t where = a.where[point + t], tile = tile_where[point + t];
    UNROLL for (int corner = 0; corner < 4; ++corner) {
      const T* values = as<T>(image.base[corner] + where);
      const Unit weight = unit(a.weight[corner][point + t]);
      Unit& mine = dot[4 * t + corner];
      UNROLL for (int block = 0; block < kBlocks; ++block) {
        Unit p, q;
        load_block(values + kBlock * block, p, q);
        mine = block == 0 ? top[0] * p : fma(top[2 * block], p, mine);
        mine = fma(top[2 * block + 1], q, mine);
        add_block(
            sums.base[corner] + tile + block * kBlock * sizeof(float), weight, scaled[2 * block],
            scaled[2 * block + 1]);
      }
    }
  }
  if constexpr (kPoints == 2) {
    store_sums_of_eight(dots + 4 * point, dot);
  } else {
    store_sums_of_four(dots + 4 * point, dot);
  }
}

template <int kBlocks, typename T>
INLINE void spread_group(
    const Points& a, const uint32_t* tile_where, int first, int points, float inverse,
    const Corners<const char>& image, const Corners<char>& sums, const Unit* top, float* dots) {
  Unit scaled[2 * kBlocks];
  for (int u = 0; u < 2 * kBlocks; ++u) scaled[u] = top[u] * unit(inverse);
  int t = 0;
  for (; t + 2 <= points; t += 2) {
    spread_points<2, kBlocks, T>(a, tile_where, first + t, image, sums, top, scaled, dots);
  }
  if (t < points) {
    spread_points<1, kBlocks, T>(a, tile_where, first + t, image, sums, top, scaled, dots);
  }
}

// Any number of channels.
template <typename T>
NOINLINE void spread_any(
    const Points& a, const uint32_t* tile_where, int first, int points, int depth, float inverse,
    const Corners<const char>& image, const Corners<char>& sums, const T* top, float* dots) {
  for (int t = first; t < first + points; ++t) {
    Unit dot[4] = {unit(0), unit(0), unit(0), unit(0)};
    int c = 0;
    for (; c + kBlock <= depth; c += kBlock) {
      Unit top_p, top_q, p, q;
      load_block(top + c, top_p, top_q);
      for (int corner = 0; corner < 4; ++corner) {
        load_block(as<T>(image.base[corner] + a.where[t]) + c, p, q);
        dot[corner] = fma(top_q, q, fma(top_p, p, dot[corner]));
        add_block(
            sums.base[corner] + tile_where[t] + c * sizeof(float), unit(a.weight[corner][t]),
            top_p * unit(inverse), top_q * unit(inverse));
      }
    }
    for (; c < depth; c += kUnit) {
      const int count = depth - c < kUnit ? depth - c : kUnit;
      const Unit top_p = load_units(top + c, count);
      for (int corner = 0; corner < 4; ++corner) {
        const Unit p = load_units(as<T>(image.base[corner] + a.where[t]) + c, count);
        dot[corner] = fma(top_p, p, dot[corner]);
        float* address = reinterpret_cast<float*>(sums.base[corner] + tile_where[t]) + c;
        const Unit weight = unit(a.weight[corner][t]);
        store_units(
            address, count, fma(weight, top_p * unit(inverse), load_units(address, count)));
      }
    }
    store_sums_of_four(dots + 4 * t, dot);
  }
}

// A group's sums, as they were kept, in the tensor's storage.
template <typename T>
INLINE void store_sums(const float* sums, int64_t count, T* result) {
  int64_t c = 0;
  for (; c + kBlock <= count; c += kBlock) {
    store_block(result + c, load_unit(sums + c), load_unit(sums + c + kUnit));
  }
  for (; c < count; c += kUnit) {
    const int n = static_cast<int>(count - c < kUnit ? count - c : kUnit);
    store_units(result + c, n, load_units(sums + c, n));
  }
}

template <int kBlocks, typename T>
INLINE void load_blocks(const T* x, Unit* u) {
  for (int block = 0; block < kBlocks; ++block) {
    load_block(x + kBlock * block, u[2 * block], u[2 * block + 1]);
  }
}

INLINE bool finite_masks(const Points& a, int count) {
  Vector spoiled = splat(0);
  for (int j = 0; j < count; j += kLanes) spoiled = fma(load(a.mask + j), splat(0), spoiled);
  return !any_nan(spoiled);
}

INLINE bool finite(const float* x, int count) {
  float nothing = 0;
  for (int i = 0; i < count; ++i) nothing += x[i] * 0;
  return nothing == 0;
}

// The groups of one output pixel that fit into Points, in three steps: points, channels, points.
template <int kBlocks, typename T>
INLINE void backward_pixel_groups(
    const Plan<T>& plan, const Corners<char>& sums, int64_t sums_stride, int64_t pixel, int64_t n,
    int64_t y, int64_t x, int64_t first, int groups, Points& a, PointGradients& b) {
  const Call<T>& call = plan.call;
  const Geometry& s = call.s;
  const PointLayout& layout = call.layout;
  const int points = plan.points, depth = static_cast<int>(s.group_channels);
  plan.template prepare<true>(pixel, y, x, first, groups, a, &b);
  const bool masks_are_finite = finite_masks(a, groups * points);
  const char* image = reinterpret_cast<const char*>(
      call.input + n * s.height * s.width * s.channels() + first * depth);
  const T* top = call.grad_output + pixel * s.channels() + first * depth;
  const uint32_t* tile_where = sizeof(T) == sizeof(float) ? a.where : b.tile_where;
  bool redo[kMaxPoints], redo_any = false;
  for (int g = 0; g < groups; ++g) {
    const int point = g * points;
    const Corners<const char> corners(
        image + g * depth * static_cast<int64_t>(sizeof(T)), plan.pixel_bytes, plan.row_bytes);
    const Corners<char> targets(sums, g * depth * static_cast<int64_t>(sizeof(float)));
    Unit mine[2 * (kBlocks ? kBlocks : 1)];
    Unit spoiled = unit(0);
    if constexpr (kBlocks != 0) {
      load_blocks<kBlocks>(top + g * depth, mine);
      for (int u = 0; u < 2 * kBlocks; ++u) spoiled = fma(mine[u], unit(0), spoiled);
    } else {
      spoiled = nothing_or_nan(top + g * depth, depth);
    }
    redo[g] = any_nan_unit(spoiled) ||
              (!masks_are_finite && !finite(a.mask + point, points));
    if (redo[g]) {
      redo_any = true;
      for (int i = 4 * point; i < 4 * (point + points); ++i) b.dots[i] = 0;
    } else if constexpr (kBlocks != 0) {
      spread_group<kBlocks, T>(
          a, tile_where, point, points, a.inverse[g], corners, targets, mine, b.dots);
    } else {
      spread_any(
          a, tile_where, point, points, depth, a.inverse[g], corners, targets, top + g * depth,
          b.dots);
    }
  }

  T* grad_offset = call.grad_offset + pixel * layout.offset_pixel + first * layout.offset_group;
  T* grad_mask = call.grad_mask + pixel * layout.mask_pixel + first * layout.mask_group;
  if (layout.softmax) {
    for (int g = 0; g < groups; ++g) fill(b.inverse + g * points, points, a.inverse[g]);
  }
  bool spoiled = redo_any;
  plan.for_each_run(pixel, first, groups, [&](const Run<T>& run) INLINE_LAMBDA {
    const int g = run.first / points;
    spoiled |= gradients_run(
        plan.frame, run, layout.softmax, a, b, grad_offset + g * layout.offset_group,
        grad_mask + g * layout.mask_group);
  });
  if (layout.softmax) {
    softmax_means(b, groups, points);
    plan.for_each_run(pixel, first, groups, [&](const Run<T>& run) INLINE_LAMBDA {
      softmax_gradients_run(run, b, grad_mask + run.first / points * layout.mask_group);
    });
  }
  if (!spoiled) return;
  for (int g = 0; g < groups; ++g) {
    if (redo[g]) {
      float* group_sums = reinterpret_cast<float*>(sums.base[0]) + g * depth;
      exact_backward(call, pixel, first + g, group_sums, sums_stride, kEvenFirst<T>);
    } else if (!finite(b.dots + 4 * g * points, 4 * points)) {
      exact_backward(call, pixel, first + g, static_cast<float*>(nullptr), 0, false);
    }
  }
}

template <int kBlocks, typename T>
NOINLINE void backward_groups(
    const Call<T>& call, int64_t n, int64_t first, int64_t last, float* tile) {
  constexpr bool kInPlace = sizeof(T) == sizeof(float);
  const Geometry& s = call.s;
  const int64_t in_plane = s.height * s.width, out_plane = s.out_height * s.out_width;
  const int64_t width = (last - first) * s.group_channels;
  const int64_t start = n * in_plane * s.channels() + first * s.group_channels;
  const char* image = reinterpret_cast<const char*>(call.input + start);
  T* slice = call.grad_input + start;
  float* sums = kInPlace ? reinterpret_cast<float*>(slice) : tile;
  const int64_t stride = kInPlace ? s.channels() : width;
  const int64_t pixel_bytes = stride * static_cast<int64_t>(sizeof(float));
  const Plan<T> plan(call, pixel_bytes);
  Points a;
  PointGradients b = {};
  plan.grid(a, last - first);
  for (int g = 0; g < kRoom; ++g) a.inverse[g] = 1;
  for (int64_t q = 0; q < in_plane; ++q) {
    __builtin_memset(sums + q * stride, 0, width * sizeof(float));
  }
  int64_t pixel = n * out_plane;
  for (int64_t y = 0; y < s.out_height; ++y) {
    for (int64_t x = 0; x < s.out_width; ++x, ++pixel) {
      plan.fetch_ahead(image, plan.pixel_bytes, y, x);
      plan.fetch_ahead(reinterpret_cast<const char*>(sums), pixel_bytes, y, x);
      for (int64_t g = first; g < last; g += plan.groups_at_once) {
        const int64_t left = last - g;
        const int groups = static_cast<int>(left < plan.groups_at_once ? left : plan.groups_at_once);
        const Corners<char> targets(
            reinterpret_cast<char*>(sums + (g - first) * s.group_channels), pixel_bytes,
            s.width * pixel_bytes);
        backward_pixel_groups<kBlocks>(plan, targets, stride, pixel, n, y, x, g, groups, a, b);
      }
    }
  }
  if constexpr (!kInPlace) {
    for (int64_t q = 0; q < in_plane; ++q) {
      for (int64_t g = 0; g < last - first; ++g) {
        store_sums(sums + q * stride + g * s.group_channels, s.group_channels,
                   slice + q * s.channels() + g * s.group_channels);
      }
    }
  }
}

template <typename T>
void backward(const Call<T>& call, int64_t n, int64_t first, int64_t last, float* tile) {
  switch (call.s.group_channels) {
    case 16: return backward_groups<1>(call, n, first, last, tile);
    case 32: return backward_groups<2>(call, n, first, last, tile);
    default: return backward_groups<0>(call, n, first, last, tile);
  }
}

constexpr Level level(const char* name) {
  return {name,
          {forward<float>, backward<float>},
          {forward<Half>, backward<Half>},
          {forward<BFloat16>, backward<BFloat16>}};
}
