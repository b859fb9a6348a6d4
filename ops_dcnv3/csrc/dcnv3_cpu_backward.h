// The backward pass; see dcnv3_cpu_kernels.h.
//
// A task owns a batch element and some of its groups, hence a slice of the input's gradient, to
// which it adds in place, output pixel after output pixel. 16-bit storage is summed in a float tile
// of that slice; there every block of 16 channels keeps the order of its units.

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
      plan.fetch_ahead(image, plan.pixel_bytes, width * static_cast<int64_t>(sizeof(T)), y, x);
      plan.fetch_ahead(reinterpret_cast<const char*>(sums), pixel_bytes, 4 * width, y, x);
      for (int64_t g = first; g < last; g += plan.groups_at_once) {
        const int groups = plan.groups_from(g, last);
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
