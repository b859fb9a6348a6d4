// How the CUDA kernels divide a call: lanes, tiles, shared memory and grids. Host arithmetic only;
// tests/cuda_on_cpu.cpp uses the same plans.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "dcnv3_core.h"

namespace dcnv3 {

constexpr int kWarp = 32;
constexpr int kSiteThreads = 256;     // of the forward and the point gradient kernel
constexpr int kTile = 8;              // output pixels along the side of an input gradient's tile
constexpr int kForwardRecords = 80;   // sampling points that a warp keeps in shared memory
constexpr int kGradientRecords = 144; // here the results too: all nine points of sixteen groups
constexpr int64_t kSharedBytes = 44 << 10;  // of one block; 48 KB are there without asking
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;  // of a launch

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The smallest power of two that is at least `value`, and at most `most` (a power of two).
inline int power_of_two(int64_t value, int most) {
  int power = 1;
  while (power < value && power < most) power *= 2;
  return power;
}

// Whether positions and elements of one image, and the points, can be counted with 31 bits.
inline bool fits_32_bits(const Geometry& s) {
  constexpr int64_t kLargest = (int64_t{1} << 30) - 1;
  const auto reach = [](int64_t size, int64_t pad, int64_t kernel, int64_t dilation) {
    return size + 2 * pad + kernel * dilation;
  };
  return s.height * s.width <= kLargest / s.channels() && s.points() < (1 << 20) &&
         reach(s.width, s.pad_w, s.kernel_w, s.dilation_w) <= kLargest &&
         reach(s.height, s.pad_h, s.kernel_h, s.dilation_h) <= kLargest;
}

// --- forward and point gradients: several sites (output pixel and group) per warp ----------------

struct SitePlan {
  int lanes;             // lanes per site, a power of two
  int chunk;             // points of a site that are in shared memory at once
  int64_t units, parts;  // per output pixel: groups times parts of a group
  int64_t units_per_slice, slices;
  int tile_h, tile_w;  // output pixels
  int64_t tiles_x, tiles;
  bool pairs;  // (x, y) of an offset may be loaded at once
  int threads;
  int64_t blocks, shared_bytes;
};

// A tile side of at most `most` that wastes little at the far edge: 7 for 14, 8 for 56.
inline int tile_side(int64_t size, int64_t most) {
  return static_cast<int>(divide_up(size, std::max<int64_t>(divide_up(size, most), 1)));
}

// `vec` channels per lane; `whole` sites are not split however many channels a group has.
inline SitePlan plan_sites(
    const Geometry& s, int vec, int64_t acc_bytes, int64_t index_bytes, int64_t records, bool whole,
    bool pairs) {
  SitePlan p;
  const int64_t vectors = divide_up(s.group_channels, vec);
  p.lanes = power_of_two(vectors, kWarp);
  const int slots = kWarp / p.lanes;
  const int64_t record_bytes = 4 * (acc_bytes + index_bytes);
  const int64_t room = kSharedBytes / (kSiteThreads / kWarp) / record_bytes;
  const int64_t most = std::min(records, room) / slots;  // at least 2: 88 / 32
  p.chunk = static_cast<int>(std::max<int64_t>(1, std::min(s.points(), most)));
  p.parts = whole ? 1 : divide_up(vectors, p.lanes);
  p.units = s.group * p.parts;
  // Neighbouring groups of a pixel share a cache line of 128 bytes: 8 lanes of 16.
  p.units_per_slice = std::min<int64_t>(p.units, std::max(1, 8 / p.lanes));
  p.slices = divide_up(p.units, p.units_per_slice);
  const int64_t pixels = kSiteThreads / (p.lanes * p.units_per_slice);
  p.tile_w = tile_side(s.out_width, pixels < 32 ? 4 : 8);
  p.tile_h = tile_side(s.out_height, pixels / p.tile_w);
  p.tiles_x = divide_up(s.out_width, p.tile_w);
  p.tiles = p.tiles_x * divide_up(s.out_height, p.tile_h);
  p.pairs = pairs;
  const int64_t sites = p.tile_h * p.tile_w * p.units_per_slice;
  p.threads = static_cast<int>(divide_up(sites, slots)) * kWarp;
  p.blocks = s.batch * p.tiles * p.slices;
  p.shared_bytes = int64_t{p.threads / kWarp} * slots * p.chunk * record_bytes;
  return p;
}

// --- input gradient: the sums of a region of the input are kept in shared memory -----------------
//
// An owner is the set of lanes that adds up `lanes * vec` channels of one group over a region. It
// handles the four neighbours of a point at once, so no two of its lanes ever add to one address,
// and needs no atomics in shared memory.

struct ScatterPlan {
  bool owned;           // an owner alone writes its region and looks at all output pixels; else it
                        // looks at one tile of them and adds its region to the others'
  int lanes;            // lanes per neighbour, a power of two; four times that per owner
  int owners;           // per block of one warp
  int64_t parts, slices;  // of a group; of a pixel
  int64_t tile_h, tile_w;  // output pixels; owned: the region
  int64_t tiles_x, tiles;
  int64_t region_h, region_w;
  int64_t first_y, first_x;  // of the region, from the tile's first pixel times the stride
  bool pairs;
  int64_t slice_blocks;  // blocks for the slices of a pixel
  int64_t blocks, shared_bytes;
};

// Where the points of output pixels 0..tile-1 lie along one axis, if no offset exceeds `halo`.
struct Reach {
  int64_t first, size;
};

inline Reach reach_of(
    int64_t tile, int64_t stride, int64_t kernel, int64_t dilation, int64_t pad, double scale,
    double halo) {
  const double limit = 1e9;
  const auto centre = static_cast<double>(dilation * (kernel - 1) / 2);
  const double start = centre - static_cast<double>(pad) - centre * scale;
  const double length = static_cast<double>(dilation * (kernel - 1)) * scale;
  const double low = start + std::min(length, 0.0) - halo * std::abs(scale);
  const double high = start + std::max(length, 0.0) + static_cast<double>((tile - 1) * stride) +
                      halo * std::abs(scale);
  const auto bounded = [&](double x) {  // NaN too
    return x > -limit ? (x < limit ? x : limit) : -limit;
  };
  const double first = bounded(std::floor(low)), last = bounded(std::floor(high) + 1);
  return {static_cast<int64_t>(first), static_cast<int64_t>(last - first) + 1};
}

inline ScatterPlan plan_scatter(
    const Geometry& s, int vec, int64_t acc_bytes, int64_t index_bytes, bool deterministic,
    bool pairs, int64_t processors) {
  ScatterPlan p{};
  const int64_t vectors = divide_up(s.group_channels, vec);
  p.lanes = power_of_two(vectors, 4);
  p.owners = kWarp / (4 * p.lanes);
  p.parts = divide_up(vectors, p.lanes);
  p.slices = s.group * p.parts;
  p.pairs = pairs;
  const int64_t records = kWarp * 8 * std::max(acc_bytes, index_bytes);
  const int64_t pixel_bytes = p.owners * p.lanes * vec * acc_bytes;
  const int64_t room = (kSharedBytes - records) / pixel_bytes;  // pixels of a region
  const int64_t warps = s.batch * divide_up(p.slices, p.owners);

  // A small image is one region: no halo, no zeros to begin with, no conversion at the end. Given
  // enough of them, or when there is no more than a tile in one.
  const bool whole = s.height * s.width <= room &&
                     (warps >= 4 * processors || s.out_height * s.out_width <= kTile * kTile);
  p.owned = deterministic || whole;
  if (p.owned) {
    const auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(room)));
    const int64_t width = whole ? s.width : std::min(s.width, side);
    p.region_w = divide_up(s.width, divide_up(s.width, width));
    const int64_t height = std::min(s.height, room / p.region_w);
    p.region_h = divide_up(s.height, divide_up(s.height, height));
    p.tile_h = p.region_h;
    p.tile_w = p.region_w;
    p.tiles_x = divide_up(s.width, p.region_w);
    p.tiles = p.tiles_x * divide_up(s.height, p.region_h);
  } else {
    // The largest tile and halo (in units of offset) that there is room for.
    constexpr struct {
      int tile;
      double halo;
    } choices[] = {{8, 2}, {8, 1}, {8, 0}, {4, 1}, {4, 0}, {2, 0}, {1, 0}};
    Reach y{}, x{};
    for (const auto& choice : choices) {
      p.tile_h = std::min<int64_t>(choice.tile, tile_side(s.out_height, kTile));
      p.tile_w = std::min<int64_t>(choice.tile, tile_side(s.out_width, kTile));
      y = reach_of(
          p.tile_h, s.stride_h, s.kernel_h, s.dilation_h, s.pad_h, s.offset_scale, choice.halo);
      x = reach_of(
          p.tile_w, s.stride_w, s.kernel_w, s.dilation_w, s.pad_w, s.offset_scale, choice.halo);
      if (std::min(y.size, s.height) * std::min(x.size, s.width) <= room) break;
    }
    // What still does not fit goes to global memory point by point, from the edges inwards.
    const auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(room)));
    p.region_h = std::min(y.size, s.height);
    p.region_w = std::min(x.size, s.width);
    if (p.region_h * p.region_w > room) {
      p.region_h = std::min(p.region_h, side);
      p.region_w = std::min(p.region_w, side);
      y.first += (y.size - p.region_h) / 2;
      x.first += (x.size - p.region_w) / 2;
      y.size = p.region_h;
      x.size = p.region_w;
    }
    p.first_y = y.first;
    p.first_x = x.first;
    p.tiles_x = divide_up(s.out_width, p.tile_w);
    p.tiles = p.tiles_x * divide_up(s.out_height, p.tile_h);
  }
  p.slice_blocks = divide_up(p.slices, p.owners);
  p.blocks = s.batch * p.tiles * p.slice_blocks;
  p.shared_bytes = records + p.region_h * p.region_w * pixel_bytes;
  return p;
}

}  // namespace dcnv3
