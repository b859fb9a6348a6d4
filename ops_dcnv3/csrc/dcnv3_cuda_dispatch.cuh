// Which instantiation of a kernel runs, and with which plan. There are two of each per storage
// type: vectors of channels with 32-bit indices, and for everything else (channels or addresses
// that do not divide, images beyond 2^30 elements) single channels with 64-bit indices.
//
// `launch(kernel, blocks, threads, shared_bytes, arguments...)` starts a kernel: on a GPU in
// dcnv3_cuda_kernels.cu, on the CPU in tests/cuda_on_cpu.cpp.
#pragma once

#include "dcnv3_cuda_scatter.cuh"
#include "dcnv3_cuda_sites.cuh"

namespace dcnv3 {

inline bool is_aligned(const void* address, size_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// Whether every (x, y) lies at a multiple of the size of such a pair.
template <typename scalar_t>
bool has_aligned_pairs(
    const PointLayout& layout, const scalar_t* offset, const scalar_t* grad_offset = nullptr) {
  return layout.offset_pixel % 2 == 0 && layout.offset_group % 2 == 0 &&
         is_aligned(offset, 2 * sizeof(scalar_t)) && is_aligned(grad_offset, 2 * sizeof(scalar_t));
}

template <typename scalar_t>
bool takes_vectors(const Geometry& s, int vec, const scalar_t* a, const scalar_t* b) {
  return s.group_channels % vec == 0 && is_aligned(a, vec * sizeof(scalar_t)) &&
         is_aligned(b, vec * sizeof(scalar_t)) && fits_32_bits(s);
}

template <typename scalar_t, typename Launch>
void run_forward(
    const Geometry& s, const PointLayout& layout, const scalar_t* input, const scalar_t* offset,
    const scalar_t* mask, scalar_t* output, Launch&& launch) {
  using acc_t = typename Storage<scalar_t>::acc_t;
  constexpr int vec = 16 / sizeof(scalar_t);
  const bool pairs = has_aligned_pairs(layout, offset);
  const auto run = [&](auto* kernel, int channels, int64_t index_bytes) {
    const SitePlan plan =
        plan_sites(s, channels, sizeof(acc_t), index_bytes, kForwardRecords, false, pairs);
    launch(
        kernel, plan.blocks, plan.threads, plan.shared_bytes, s, layout, plan, input, offset, mask,
        output);
  };
  if (takes_vectors(s, vec, input, output)) {
    run(&forward_kernel<scalar_t, int, vec>, vec, sizeof(int));
  } else {
    run(&forward_kernel<scalar_t, int64_t, 1>, 1, sizeof(int64_t));
  }
}

template <typename scalar_t, typename Launch>
void run_point_gradients(
    const Geometry& s, const PointLayout& layout, const scalar_t* grad_output,
    const scalar_t* input, const scalar_t* offset, const scalar_t* mask, scalar_t* grad_offset,
    scalar_t* grad_mask, Launch&& launch) {
  using acc_t = typename Storage<scalar_t>::acc_t;
  constexpr int vec = 16 / sizeof(scalar_t);
  const bool pairs = has_aligned_pairs(layout, offset, grad_offset);
  const auto run = [&](auto* kernel, int channels, int64_t index_bytes) {
    const SitePlan plan =
        plan_sites(s, channels, sizeof(acc_t), index_bytes, kGradientRecords, true, pairs);
    launch(
        kernel, plan.blocks, plan.threads, plan.shared_bytes, s, layout, plan, grad_output, input,
        offset, mask, grad_offset, grad_mask);
  };
  if (takes_vectors(s, vec, input, grad_output)) {
    run(&point_gradient_kernel<scalar_t, int, vec>, vec, sizeof(int));
  } else {
    run(&point_gradient_kernel<scalar_t, int64_t, 1>, 1, sizeof(int64_t));
  }
}

// Channels per lane of the input gradient's kernel: 16 bytes of sums.
template <typename scalar_t>
constexpr int scatter_vector() {
  return 16 / sizeof(typename Storage<scalar_t>::acc_t);
}

// The plan of `run_input_gradient`: known beforehand, because it says what has to be allocated.
template <typename scalar_t>
ScatterPlan plan_input_gradient(
    const Geometry& s, const PointLayout& layout, const scalar_t* grad_output,
    const scalar_t* offset, bool deterministic, int64_t processors) {
  using acc_t = typename Storage<scalar_t>::acc_t;
  constexpr int vec = scatter_vector<scalar_t>();
  const bool fast = takes_vectors<scalar_t>(s, vec, grad_output, nullptr);
  return plan_scatter(
      s, fast ? vec : 1, sizeof(acc_t), fast ? sizeof(int) : sizeof(int64_t), deterministic,
      has_aligned_pairs(layout, offset), processors);
}

// Adds to `sums`, which is zero at first, or (plan.owned) writes all of `grad_input`; both from an
// allocator: aligned to 16 bytes.
template <typename scalar_t, typename Launch>
void run_input_gradient(
    const Geometry& s, const PointLayout& layout, const ScatterPlan& plan,
    const scalar_t* grad_output, const scalar_t* offset, const scalar_t* mask,
    typename Storage<scalar_t>::acc_t* sums, scalar_t* grad_input, Launch&& launch) {
  constexpr int vec = scatter_vector<scalar_t>();
  const auto run = [&](auto* kernel) {
    launch(
        kernel, plan.blocks, kWarp, plan.shared_bytes, s, layout, plan, grad_output, offset, mask,
        sums, grad_input);
  };
  if (takes_vectors<scalar_t>(s, vec, grad_output, nullptr)) {
    run(&input_gradient_kernel<scalar_t, int, vec>);
  } else {
    run(&input_gradient_kernel<scalar_t, int64_t, 1>);
  }
}

}  // namespace dcnv3
