// CUDA kernels that read the input: the forward pass, and the gradients of offsets and masks.
//
// A warp works on several sites (output pixel and group) at once; the lanes of a site each own 16
// bytes of its channels. They first divide the site's points among themselves, leave positions and
// weights in shared memory, and then all walk over all points.
#pragma once

#include "dcnv3_cuda_common.cuh"

namespace dcnv3 {

// For the register allocation, blocks per multiprocessor: 3 leave 80 registers, which are enough
// where sums and indices have 32 bits; 2 leave 128. sm_100 needs more than others.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kGradientBlocks = 2;
#else
constexpr int kGradientBlocks = 3;
#endif
#define DCNV3_SITE_KERNEL(blocks)                                                          \
  __global__ void __launch_bounds__(                                                       \
      kSiteThreads,                                                                        \
      (sizeof(typename Storage<scalar_t>::acc_t) + sizeof(index_t) == 8 ? (blocks) : 2))

// Adds the points [0, count) to the sums of `vec` channels. `all_inside` is the same in the whole
// warp; without it, neighbours outside the image are not read: they may be anything.
template <bool all_inside, int vec, typename scalar_t, typename acc_t, typename index_t>
__device__ inline void add_points(
    const Four<acc_t>* weights, const Four<index_t>* corners, int count, int slots,
    const scalar_t* image, acc_t* sums) {
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const Four<acc_t> weight = weights[i * slots];
    const Four<index_t> corner = corners[i * slots];
    Pack<scalar_t, vec> pixel[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (all_inside || corner.at[k] >= 0) pixel[k] = load<scalar_t, vec>(image + corner.at[k]);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!all_inside && corner.at[k] < 0) continue;
      acc_t values[vec];
      unpack(pixel[k], values);
#pragma unroll
      for (int c = 0; c < vec; ++c) sums[c] += weight.at[k] * values[c];
    }
  }
}

template <typename scalar_t, typename index_t, int vec>
DCNV3_SITE_KERNEL(3) forward_kernel(
    const Geometry s, const PointLayout layout, const SitePlan plan,
    const scalar_t* __restrict__ input, const scalar_t* __restrict__ offset,
    const scalar_t* __restrict__ mask, scalar_t* __restrict__ output) {
  using acc_t = typename Storage<scalar_t>::acc_t;
  DCNV3_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int slots = kWarp / plan.lanes, slot = lane / plan.lanes, sub = lane % plan.lanes;
  const int records = slots * plan.chunk, warps = static_cast<int>(blockDim.x) / kWarp;
  const int mine = static_cast<int>(threadIdx.x) / kWarp * records + slot;
  auto* weights = reinterpret_cast<Four<acc_t>*>(shared) + mine;
  auto* corners = reinterpret_cast<Four<index_t>*>(
                      shared + static_cast<size_t>(warps * records) * sizeof(Four<acc_t>)) +
                  mine;
  const auto channels = static_cast<index_t>(s.channels());
  const auto depth = static_cast<index_t>(s.group_channels);
  const auto points = static_cast<index_t>(s.points());

  Place<index_t> place;
  if (!find_place(s, plan, slot, slots, place)) return;
  int64_t group = place.unit, part = 0;
  if (plan.parts > 1) {
    group = place.unit / plan.parts;
    part = place.unit - group * plan.parts;
  }
  const int64_t pixel = (place.n * s.out_height + place.y) * s.out_width + place.x;
  auto site = locate_site<acc_t>(s, layout, pixel, place.y, place.x, group);
  if (layout.softmax) normalise(site, mask + site.mask, s.points());
  index_t channel = (static_cast<index_t>(part) * plan.lanes + sub) * vec;
  const bool stores = place.live && channel < depth;
  if (channel >= depth) channel = 0;  // lanes beyond the last channel come along
  channel += static_cast<index_t>(group) * depth;
  const scalar_t* image = input + place.n * s.height * s.width * s.channels() + channel;
  acc_t sums[vec];
#pragma unroll
  for (int c = 0; c < vec; ++c) sums[c] = 0;

  for (index_t start = 0; start < points; start += plan.chunk) {
    const int count = static_cast<int>(points - start < plan.chunk ? points - start : plan.chunk);
    bool all_inside = true;
    __syncwarp();  // the previous points are done with
    for (int i = sub; i < count; i += plan.lanes) {
      const index_t t = start + i;
      const auto shift = load_offset(offset + site.offset + 2 * t, plan.pairs);
      const acc_t logit = widen<acc_t>(mask[site.mask + t]);
      const auto point = locate_point<acc_t, index_t>(s, site, t, shift);
      Four<index_t> corner;
      all_inside &= neighbours(s, point, channels, corner);
      const acc_t weight = weight_of(site, layout, logit);
      const acc_t lower = weight * point.below, upper = weight * (1 - point.below);
      const acc_t left = 1 - point.right;
      weights[i * slots] = {
          {upper * left, upper * point.right, lower * left, lower * point.right}};
      corners[i * slots] = corner;
    }
    all_inside = __all_sync(kAllLanes, all_inside);
    __syncwarp();
    if (all_inside) {
      add_points<true, vec>(weights, corners, count, slots, image, sums);
    } else {
      add_points<false, vec>(weights, corners, count, slots, image, sums);
    }
  }
  if (stores) store<vec>(output + pixel * s.channels() + channel, sums);
}

// Adds grad_output . neighbour over `vec` channels, for the four neighbours of a point.
template <bool all_inside, int vec, typename scalar_t, typename acc_t, typename index_t>
__device__ inline void add_products(
    const Four<index_t>& corner, const scalar_t* image, const acc_t* top, acc_t* along) {
  Pack<scalar_t, vec> pixel[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (all_inside || corner.at[k] >= 0) pixel[k] = load<scalar_t, vec>(image + corner.at[k]);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (!all_inside && corner.at[k] < 0) continue;
    acc_t values[vec];
    unpack(pixel[k], values);
#pragma unroll
    for (int c = 0; c < vec; ++c) along[k] += top[c] * values[c];
  }
}

// What the lanes of a site know about its channels.
template <typename scalar_t, typename acc_t, int vec>
struct Channels {
  const scalar_t* image;  // input of this batch element, at the group's first channel
  const scalar_t* top;    // grad_output of this pixel, at the group's first channel
  int first, step, depth;  // this lane's channels: first, first + step, ... below depth
  acc_t held[vec];         // the first of them
};

// Gradients of the points [0, count): x, y and mask replace the records of the points. Returns the
// sum of mask times its gradient.
template <bool all_inside, int vec, typename scalar_t, typename acc_t, typename index_t>
__device__ inline acc_t differentiate_points(
    Four<acc_t>* records, const Four<index_t>* corners, int count, int slots, int lanes, bool first,
    acc_t scale, const Channels<scalar_t, acc_t, vec>& channels) {
  acc_t weighted = 0;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const Four<acc_t> record = records[i * slots];
    const Four<index_t> corner = corners[i * slots];
    acc_t along[4] = {0, 0, 0, 0};
    if (channels.first < channels.depth) {
      add_products<all_inside, vec>(corner, channels.image + channels.first, channels.held, along);
    }
    for (int c = channels.first + channels.step; c < channels.depth; c += channels.step) {
      acc_t top[vec];
      unpack(load<scalar_t, vec>(channels.top + c), top);
      add_products<all_inside, vec>(corner, channels.image + c, top, along);
    }
    for (int step = lanes / 2; step > 0; step /= 2) {
#pragma unroll
      for (int k = 0; k < 4; ++k) along[k] += __shfl_xor_sync(kAllLanes, along[k], step);
    }
    const acc_t right = record.at[0], below = record.at[1], mask = record.at[2];
    const acc_t upper = (1 - right) * along[0] + right * along[1];
    const acc_t lower = (1 - right) * along[2] + right * along[3];
    const acc_t by_x = (1 - below) * (along[1] - along[0]) + below * (along[3] - along[2]);
    const acc_t value = (1 - below) * upper + below * lower;
    weighted += mask * value;
    __syncwarp();  // all lanes have read the record
    if (first) {
      records[i * slots] = {{mask * scale * by_x, mask * scale * (lower - upper), value, mask}};
    }
  }
  return weighted;
}

template <typename scalar_t, typename index_t, int vec>
DCNV3_SITE_KERNEL(kGradientBlocks) point_gradient_kernel(
    const Geometry s, const PointLayout layout, const SitePlan plan,
    const scalar_t* __restrict__ grad_output, const scalar_t* __restrict__ input,
    const scalar_t* __restrict__ offset, const scalar_t* __restrict__ mask,
    scalar_t* __restrict__ grad_offset, scalar_t* __restrict__ grad_mask) {
  using acc_t = typename Storage<scalar_t>::acc_t;
  DCNV3_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int slots = kWarp / plan.lanes, slot = lane / plan.lanes, sub = lane % plan.lanes;
  const int per_warp = slots * plan.chunk, warps = static_cast<int>(blockDim.x) / kWarp;
  const int of_warp = static_cast<int>(threadIdx.x) / kWarp * per_warp;
  auto* records = reinterpret_cast<Four<acc_t>*>(shared) + of_warp;
  auto* corners = reinterpret_cast<Four<index_t>*>(
                      shared + static_cast<size_t>(warps * per_warp) * sizeof(Four<acc_t>)) +
                  of_warp;
  const auto step = static_cast<index_t>(s.channels());
  const auto points = static_cast<index_t>(s.points());
  const acc_t scale = static_cast<acc_t>(s.offset_scale);
  // The Jacobian of the softmax needs a sum over all points before any of them can be written.
  const int passes = layout.softmax && plan.chunk < points ? 2 : 1;

  Place<index_t> place;
  if (!find_place(s, plan, slot, slots, place)) return;
  const int64_t group = place.unit;
  const int64_t pixel = (place.n * s.out_height + place.y) * s.out_width + place.x;
  auto site = locate_site<acc_t>(s, layout, pixel, place.y, place.x, group);
  if (layout.softmax) normalise(site, mask + site.mask, s.points());
  Channels<scalar_t, acc_t, vec> channels;
  channels.image = input + place.n * s.height * s.width * s.channels() + group * s.group_channels;
  channels.top = grad_output + pixel * s.channels() + group * s.group_channels;
  channels.first = sub * vec;
  channels.step = plan.lanes * vec;
  channels.depth = static_cast<int>(s.group_channels);
  if (channels.first < channels.depth) {
    unpack(load<scalar_t, vec>(channels.top + channels.first), channels.held);
  }
  const int live_slots = __popc(__ballot_sync(kAllLanes, place.live && sub == 0));
  acc_t weighted = 0;

  for (int pass = passes; pass > 0; --pass) {
    for (index_t start = 0; start < points; start += plan.chunk) {
      const int count = static_cast<int>(points - start < plan.chunk ? points - start : plan.chunk);
      bool all_inside = true;
      __syncwarp();  // the previous points are done with
      for (int i = sub; i < count; i += plan.lanes) {
        const index_t t = start + i;
        const auto shift = load_offset(offset + site.offset + 2 * t, plan.pairs);
        const acc_t logit = widen<acc_t>(mask[site.mask + t]);
        const auto point = locate_point<acc_t, index_t>(s, site, t, shift);
        Four<index_t> corner;
        all_inside &= neighbours(s, point, step, corner);
        const acc_t weight = point.inside ? weight_of(site, layout, logit) : acc_t(0);
        records[i * slots + slot] = {{point.right, point.below, weight, 0}};
        corners[i * slots + slot] = corner;
      }
      all_inside = __all_sync(kAllLanes, all_inside);
      __syncwarp();
      const acc_t sum =
          all_inside ? differentiate_points<true, vec>(
                           records + slot, corners + slot, count, slots, plan.lanes, sub == 0,
                           scale, channels)
                     : differentiate_points<false, vec>(
                           records + slot, corners + slot, count, slots, plan.lanes, sub == 0,
                           scale, channels);
      if (pass == passes) weighted += sum;
      if (pass > 1) continue;
      __syncwarp();
      // Neighbouring lanes write neighbouring points, whichever site they belong to.
      const float per_point = 1.0f / static_cast<float>(count);
      for (int first = 0; first < live_slots * count; first += kWarp) {
        const bool writes = first + lane < live_slots * count;
        const int item = writes ? first + lane : 0;
        const int owner = quotient(item, per_point), i = item - owner * count;
        const int leader = owner * plan.lanes;
        const index_t t = start + i;
        const int64_t mask_at = __shfl_sync(kAllLanes, site.mask, leader) + t;
        const int64_t offset_at = __shfl_sync(kAllLanes, site.offset, leader) + 2 * t;
        const Four<acc_t> result = records[i * slots + owner];
        acc_t by_mask = result.at[2];
        if (layout.softmax) {
          const acc_t most = __shfl_sync(kAllLanes, site.most, leader);
          const acc_t reciprocal = __shfl_sync(kAllLanes, site.reciprocal, leader);
          const acc_t mean = __shfl_sync(kAllLanes, weighted, leader);
          const acc_t logit = widen<acc_t>(mask[mask_at]);
          by_mask = exponential(logit - most) * reciprocal * (by_mask - mean);
        }
        if (!writes) continue;
        if (plan.pairs) {
          store<2>(grad_offset + offset_at, result.at);
        } else {
          grad_offset[offset_at] = narrow<scalar_t>(result.at[0]);
          grad_offset[offset_at + 1] = narrow<scalar_t>(result.at[1]);
        }
        grad_mask[mask_at] = narrow<scalar_t>(by_mask);
      }
    }
  }
}

}  // namespace dcnv3
