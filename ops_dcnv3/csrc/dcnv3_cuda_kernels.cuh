// CUDA kernels. Every thread owns one output pixel and group (forward: one block of its channels),
// so offset and mask gradients need no reduction; input gradients are summed atomically in acc_t.
// No PyTorch in here: tests/cuda_on_cpu.cpp runs the same source on the CPU.
#pragma once

#include "dcnv3_core.h"

namespace dcnv3 {

constexpr int kThreads = 128;
constexpr int kChannelBlock = 8;

template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kThreads) forward_kernel(
    const Geometry s, const scalar_t* __restrict__ input, const scalar_t* __restrict__ offset,
    const scalar_t* __restrict__ mask, scalar_t* __restrict__ output) {
  const int64_t turns = (s.group_channels + kChannelBlock - 1) / kChannelBlock;
  const int64_t items = s.out_pixels() * s.group * turns;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items;
       item += step) {
    const int64_t first = item % turns * kChannelBlock;
    const int64_t pixel_group = item / turns;
    const int64_t g = pixel_group % s.group, pixel = pixel_group / s.group;
    const int64_t plane = s.out_height * s.out_width, n = pixel / plane;
    const int64_t left = s.group_channels - first;
    const int64_t first_point = pixel_group * s.points();
    forward_block<scalar_t, acc_t, kChannelBlock>(
        s, pixel % plane / s.out_width, pixel % s.out_width, g, first,
        left < kChannelBlock ? left : kChannelBlock,
        input + n * s.height * s.width * s.channels(), offset + 2 * first_point,
        mask + first_point, output + pixel * s.channels());
  }
}

template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const Geometry s, const scalar_t* __restrict__ grad_output, const scalar_t* __restrict__ input,
    const scalar_t* __restrict__ offset, const scalar_t* __restrict__ mask,
    acc_t* __restrict__ grad_input, scalar_t* __restrict__ grad_offset,
    scalar_t* __restrict__ grad_mask) {
  const int64_t items = s.out_pixels() * s.group;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items;
       item += step) {
    const int64_t g = item % s.group, pixel = item / s.group;
    const int64_t plane = s.out_height * s.out_width, n = pixel / plane;
    const int64_t slice = n * s.height * s.width * s.channels() + g * s.group_channels;
    const int64_t first_point = item * s.points();
    backward_pixel<scalar_t, acc_t>(
        s, pixel % plane / s.out_width, pixel % s.out_width,
        grad_output + pixel * s.channels() + g * s.group_channels, input + slice,
        offset + 2 * first_point, mask + first_point, grad_input + slice, s.channels(),
        grad_offset + 2 * first_point, grad_mask + first_point,
        [](acc_t* address, acc_t value) { atomicAdd(address, value); });
  }
}

}  // namespace dcnv3
