// CUDA kernel of the input gradient: sums in shared memory, one warp per block.
//
// Atomic additions to global memory, 36 per output pixel and channel with a 3 x 3 kernel, are what
// makes the plain backward pass slow. Here an owner (see ScatterPlan) keeps the sums of a region in
// shared memory and is the only one to touch them, so plain additions do. Points that land outside
// the region go to global memory one by one, and the region once, at the end.
#pragma once

#include "dcnv3_cuda_common.cuh"

namespace dcnv3 {

// One neighbour of a point: its weight, and where it is: >= 0 pixel of the region, kNowhere, or
// below that kNowhere - 1 - (pixel of the image).
template <typename acc_t, typename index_t>
struct alignas(sizeof(acc_t) > sizeof(index_t) ? 2 * sizeof(acc_t) : 2 * sizeof(index_t)) Target {
  acc_t weight;
  index_t place;
};
constexpr int kNowhere = -1;

template <typename acc_t, typename index_t>
struct alignas(16) Targets {
  Target<acc_t, index_t> at[4];
};

template <int vec, typename acc_t>
__device__ inline void add_to_global(acc_t* address, const acc_t* values) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && \
    __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
  if constexpr (vec == 4 && sizeof(acc_t) == sizeof(float)) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(
                     __cvta_generic_to_global(address)),
                 "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3])
                 : "memory");
  } else
#endif
  {
#pragma unroll
    for (int c = 0; c < vec; ++c) atomicAdd(address + c, values[c]);
  }
}

// The input pixels whose gradients an owner adds up, and the output pixels that it looks at.
struct Region {
  int64_t y, x;
  int rows, columns;
  int64_t first_out_y, first_out_x, out_rows, out_columns;
};

__device__ inline int64_t limited(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

__device__ inline Region region_of(const Geometry& s, const ScatterPlan& plan, int64_t tile) {
  const int64_t tile_y = tile / plan.tiles_x * plan.tile_h;
  const int64_t tile_x = tile % plan.tiles_x * plan.tile_w;
  Region r;
  if (plan.owned) {
    r.y = tile_y;
    r.x = tile_x;
    r.first_out_y = r.first_out_x = 0;
    r.out_rows = s.out_height;
    r.out_columns = s.out_width;
  } else {
    r.y = limited(tile_y * s.stride_h + plan.first_y, 0, s.height - plan.region_h);
    r.x = limited(tile_x * s.stride_w + plan.first_x, 0, s.width - plan.region_w);
    r.first_out_y = tile_y;
    r.first_out_x = tile_x;
    r.out_rows = limited(s.out_height - tile_y, 0, plan.tile_h);
    r.out_columns = limited(s.out_width - tile_x, 0, plan.tile_w);
  }
  r.rows = static_cast<int>(limited(s.height - r.y, 0, plan.region_h));
  r.columns = static_cast<int>(limited(s.width - r.x, 0, plan.region_w));
  return r;
}

// What one lane reads for the next points before it is needed. As stored: converting would wait.
template <typename scalar_t, typename acc_t, int vec>
struct Fetched {
  Site<acc_t> site;
  Pack<scalar_t, 2> offset;  // of this lane's point, where there is one
  scalar_t mask;
  Pack<scalar_t, vec> top;  // grad_output of this lane's channels
};

// `sums` (zero at first, added to) is written unless the plan is `owned`, else `grad_input`.
template <typename scalar_t, typename index_t, int vec>
__global__ void __launch_bounds__(kWarp, 8) input_gradient_kernel(
    const Geometry s, const PointLayout layout, const ScatterPlan plan,
    const scalar_t* __restrict__ grad_output, const scalar_t* __restrict__ offset,
    const scalar_t* __restrict__ mask, typename Storage<scalar_t>::acc_t* __restrict__ sums,
    scalar_t* __restrict__ grad_input) {
  using acc_t = typename Storage<scalar_t>::acc_t;
  using Target4 = Targets<acc_t, index_t>;
  using Lane = Fetched<scalar_t, acc_t, vec>;
  DCNV3_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x), per_owner = 4 * plan.lanes;
  const int owner = lane / per_owner, within = lane % per_owner;
  const int corner = within / plan.lanes, part = within % plan.lanes;
  const int width = plan.lanes * vec;  // channels of an owner
  auto* targets = reinterpret_cast<Target4*>(shared);
  auto* region_sums = reinterpret_cast<acc_t*>(shared + kWarp * sizeof(Target4)) +
                      static_cast<int64_t>(owner) * plan.region_h * plan.region_w * width;
  const auto points = static_cast<index_t>(s.points());
  const int64_t block = blockIdx.x, tile_of_batch = block / plan.slice_blocks;
  const int64_t n = tile_of_batch / plan.tiles, tile = tile_of_batch - n * plan.tiles;
  const int64_t own_slice = (block - tile_of_batch * plan.slice_blocks) * plan.owners + owner;
  const bool works = own_slice < plan.slices;
  const int64_t slice = works ? own_slice : 0;
  const int64_t group = slice / plan.parts;
  const int64_t first_channel = (slice - group * plan.parts) * width;  // within the group
  const int64_t own_channel = first_channel + part * vec;
  const bool has_channel = works && own_channel < s.group_channels;
  const int64_t image = n * s.height * s.width * s.channels() + group * s.group_channels;
  const int64_t channel = group * s.group_channels + (has_channel ? own_channel : 0);

  const Region r = region_of(s, plan, tile);
  const int numbers = r.rows * r.columns * plan.lanes;  // packs of `vec` sums
  for (int i = within; i < numbers; i += per_owner) {
#pragma unroll
    for (int c = 0; c < vec; ++c) region_sums[i * vec + c] = 0;
  }
  auto y = static_cast<index_t>(r.first_out_y), x = static_cast<index_t>(r.first_out_x);
  index_t start = 0;  // first point of the current ones
  const auto fetch = [&](index_t out_y, index_t out_x, index_t first) {
    Lane next;
    const int64_t pixel = (n * s.out_height + out_y) * s.out_width + out_x;
    next.site = locate_site<acc_t>(s, layout, pixel, out_y, out_x, group);
    if (first + within < points) {
      const index_t t = first + within;
      next.offset = load_offset(offset + next.site.offset + 2 * t, plan.pairs);
      next.mask = mask[next.site.mask + t];
    }
    next.top = load<scalar_t, vec>(grad_output + pixel * s.channels() + channel);
    return next;
  };
  Lane now = fetch(y, x, 0);
  acc_t most = 0, reciprocal = 1;

  for (int64_t pixels = points > 0 ? r.out_rows * r.out_columns : 0; pixels > 0;) {
    if (layout.softmax && start == 0) {
      const auto logit = [&](index_t t) {
        return widen<acc_t>(t == within ? now.mask : mask[now.site.mask + t]);
      };
      most = -INFINITY;
      for (index_t t = within; t < points; t += per_owner) most = std::fmax(most, logit(t));
      for (int step = per_owner / 2; step > 0; step /= 2) {
        most = std::fmax(most, __shfl_xor_sync(kAllLanes, most, step));
      }
      acc_t sum = 0;
      for (index_t t = within; t < points; t += per_owner) sum += exponential(logit(t) - most);
      for (int step = per_owner / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, step);
      }
      reciprocal = 1 / sum;
    }
    bool hit = false;
    Target4 target;
#pragma unroll
    for (int k = 0; k < 4; ++k) target.at[k] = {0, kNowhere};
    if (works && start + within < points) {
      now.site.most = most;
      now.site.reciprocal = reciprocal;
      const auto point = locate_point<acc_t, index_t>(s, now.site, start + within, now.offset);
      const acc_t mask_or_logit = widen<acc_t>(now.mask);
      const acc_t weight = point.inside ? weight_of(now.site, layout, mask_or_logit) : acc_t(0);
      Four<index_t> places;  // in the image
      neighbours(s, point, index_t(1), places);
      const acc_t lower = weight * point.below, upper = weight * (1 - point.below);
      const acc_t left = 1 - point.right;
      const acc_t shares[4] = {
          upper * left, upper * point.right, lower * left, lower * point.right};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const index_t row = point.top + k / 2 - static_cast<index_t>(r.y);
        const index_t column = point.left + k % 2 - static_cast<index_t>(r.x);
        target.at[k].weight = shares[k];
        if (places.at[k] < 0) continue;
        if (row >= 0 && row < r.rows && column >= 0 && column < r.columns) {
          target.at[k].place = row * r.columns + column;
        } else if (!plan.owned) {
          target.at[k].place = kNowhere - 1 - places.at[k];
        }
        hit |= target.at[k].place != kNowhere;
      }
    }
    acc_t top[vec];
    unpack(now.top, top);
    targets[lane] = target;
    unsigned hits = __ballot_sync(kAllLanes, hit);  // of the owners' points, all together
    for (int step = per_owner; step < kWarp; step *= 2) hits |= hits >> step;
    hits &= (1u << per_owner) - 1;
    __syncwarp();

    start += per_owner;
    if (start >= points) {
      start = 0;
      --pixels;
      if (++x == r.first_out_x + r.out_columns) {
        x = r.first_out_x;
        ++y;
      }
    }
    if (pixels > 0) now = fetch(y, x, start);

    const Target4* mine = targets + owner * per_owner;
    Target<acc_t, index_t> aim{0, kNowhere};
    if (hits) aim = mine[__ffs(static_cast<int>(hits)) - 1].at[corner];
    while (hits) {
      hits &= hits - 1;
      Target<acc_t, index_t> next{0, kNowhere};
      if (hits) next = mine[__ffs(static_cast<int>(hits)) - 1].at[corner];
      if (aim.place >= 0) {
        acc_t* sum = region_sums + aim.place * width + part * vec;
        Pack<acc_t, vec> values = load<acc_t, vec>(sum);
#pragma unroll
        for (int c = 0; c < vec; ++c) values.at[c] += aim.weight * top[c];
        *reinterpret_cast<Pack<acc_t, vec>*>(sum) = values;
      } else if (aim.place < kNowhere && has_channel) {
        const int64_t pixel = kNowhere - 1 - static_cast<int64_t>(aim.place);
        acc_t values[vec];
#pragma unroll
        for (int c = 0; c < vec; ++c) values[c] = aim.weight * top[c];
        add_to_global<vec>(sums + image + pixel * s.channels() + own_channel, values);
      }
      aim = next;
      __syncwarp();  // the next point may lie on the same pixels
    }
  }

  __syncwarp();
  const float per_column = 1.0f / static_cast<float>(r.columns);
  for (int i = within; works && i < numbers; i += per_owner) {
    const int pixel = i / plan.lanes, row = quotient(pixel, per_column);
    const int64_t c = first_channel + (i - pixel * plan.lanes) * vec;
    if (c >= s.group_channels) continue;
    const int64_t at =
        image + ((r.y + row) * s.width + r.x + pixel - row * r.columns) * s.channels() + c;
    const Pack<acc_t, vec> values = load<acc_t, vec>(region_sums + i * vec);
    if (plan.owned) {
      store<vec>(grad_input + at, values.at);
      continue;
    }
    bool any = false;
#pragma unroll
    for (int j = 0; j < vec; ++j) any |= values.at[j] != 0;
    if (any) add_to_global<vec>(sums + at, values.at);
  }
}

}  // namespace dcnv3
