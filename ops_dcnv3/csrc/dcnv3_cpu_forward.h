// The forward pass; see dcnv3_cpu_kernels.h.

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
    const T* pixels = call.input + n * s.height * s.width * channels;
    const char* image = reinterpret_cast<const char*>(pixels);
    T* output = call.output + pixel * channels;
    plan.fetch_ahead(image, plan.pixel_bytes, plan.pixel_bytes, y, x);
    for (int64_t first = 0; first < s.group; first += plan.groups_at_once) {
      const int groups = plan.groups_from(first, s.group);
      plan.template prepare<false>(pixel, y, x, first, groups, a, nullptr);
      Unit spoiled = unit(0);
      for (int g = 0; g < groups; ++g) {
        const int point = g * plan.points;
        const float inverse = a.inverse[g];
        int64_t c = (first + g) * s.group_channels;
        const int64_t stop = c + s.group_channels;
        const auto corners = [&]() INLINE_LAMBDA {
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
