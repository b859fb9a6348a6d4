// What the CPU sources share: the description of a call, the kernels of one instruction set, and
// the exact kernel.
//
// No PyTorch and no standard containers in here: this is included by sources that are compiled for
// instruction sets which the running machine may lack, and an inline function of a library that
// such a source emitted could be the copy that the linker keeps for all.
#pragma once

#include <cstdint>

#include "dcnv3_core.h"

namespace dcnv3 {

// 16-bit storage; the conversions round to nearest, ties to even.
struct Half {
  uint16_t bits;
  Half() = default;
  explicit Half(float x);
  explicit operator float() const;
};
struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(float x);
  explicit operator float() const;
};

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

// One call of the operator or of its backward: contiguous tensors of one storage type. Offset and
// mask point at the first point of output pixel 0 and group 0, and so do their gradients.
template <typename T>
struct Call {
  Geometry s;
  PointLayout layout;
  const T *input, *offset, *mask;
  T* output;             // forward only
  const T* grad_output;  // backward only, and what follows
  T *grad_input, *grad_offset, *grad_mask;
};

template <typename T>
struct Kernels {
  // Output pixels [begin, end).
  void (*forward)(const Call<T>&, int64_t begin, int64_t end);
  // All that batch element n and groups [first, last) own: offset and mask gradients, and a slice
  // of grad_input, which need not be initialised. `tile` is room for the sums of that slice,
  // H * W * (last - first) * group_channels numbers, where the storage is 16-bit; else unused.
  void (*backward)(const Call<T>&, int64_t n, int64_t first, int64_t last, Accumulator<T>* tile);
};

// The kernels of one instruction set.
struct Level {
  const char* name;
  Kernels<float> f32;
  Kernels<Half> f16;
  Kernels<BFloat16> bf16;
};

// Null where the compiler or the processor's architecture does not have it.
const Level* avx512_level();
const Level* avx2_level();
const Level* portable_level();

// What the vector kernels can index: two rows and columns at least, as many points per group as
// fit, and 32 bits for the pixels and bytes of one image.
constexpr int kMaxPoints = 160;  // 16 groups of 9 fill nine vectors of 16
inline bool vectors_fit(const Geometry& s, int64_t element_size) {
  const int64_t pixels = s.height * s.width;
  return s.height >= 2 && s.width >= 2 && s.points() >= 1 && s.points() <= kMaxPoints &&
         pixels <= (1 << 24) && pixels * s.channels() * element_size <= INT32_MAX;
}

// --- the exact kernel, dcnv3_cpu_exact.cpp -------------------------------------------------------

// All channels of one output pixel and group.
template <typename T>
void exact_forward(const Call<T>& call, int64_t pixel, int64_t g);

// All gradients of one output pixel and group. The input's are added to `grad_image`, which is at
// the group's first channel, with pixels `grad_stride` apart; null leaves them out. `even_first`:
// of every 16 channels there, the even ones are kept before the odd ones.
template <typename T>
void exact_backward(
    const Call<T>& call, int64_t pixel, int64_t g, Accumulator<T>* grad_image, int64_t grad_stride,
    bool even_first);

// The same interface as Kernels.
template <typename T>
void exact_forward_pixels(const Call<T>& call, int64_t begin, int64_t end);
template <typename T>
void exact_backward_groups(
    const Call<T>& call, int64_t n, int64_t first, int64_t last, Accumulator<T>* tile);

}  // namespace dcnv3
