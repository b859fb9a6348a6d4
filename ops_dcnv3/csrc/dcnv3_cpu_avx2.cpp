// The CPU kernels for x86-64 with AVX2, FMA and F16C.
//
// No header of the standard library may be included after the pragmas below, see dcnv3_cpu.h.
#include "dcnv3_cpu.h"

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include <immintrin.h>

#include "dcnv3_cpu_macros.h"

namespace dcnv3 {
namespace {

#include "dcnv3_cpu_units_avx.h"

using Vector = __m256;
constexpr int kLanes = 8;

INLINE Vector splat(float x) { return unit(x); }
INLINE Vector load(const float* p) { return load_unit(p); }
INLINE void store(float* p, Vector x) { store_unit(p, x); }
INLINE Vector min(Vector a, Vector b) { return _mm256_min_ps(a, b); }
INLINE Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
INLINE Vector truncate(Vector x) { return _mm256_round_ps(x, 3 | _MM_FROUND_NO_EXC); }
INLINE Vector nearest(Vector x) { return _mm256_round_ps(x, 0 | _MM_FROUND_NO_EXC); }
INLINE Vector times_power_of_two(Vector x, Vector n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}
INLINE Vector where_less(Vector a, Vector b, Vector yes, Vector no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE bool any_beyond(Vector x, float limit) {
  const Vector magnitude = _mm256_andnot_ps(splat(-0.f), x);
  return _mm256_movemask_ps(_mm256_cmp_ps(magnitude, splat(limit), _CMP_NLE_UQ)) != 0;
}
INLINE bool any_nan(Vector x) { return any_nan_unit(x); }
INLINE void store_product(uint32_t* p, Vector x, int32_t factor) {
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(p),
      _mm256_mullo_epi32(_mm256_cvttps_epi32(x), _mm256_set1_epi32(factor)));
}

// All ones in the first n lanes (none for n < 0).
INLINE __m256i lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE const int* as_int(const void* p) { return static_cast<const int*>(p); }
INLINE int* as_int(void* p) { return static_cast<int*>(p); }

// The first n <= 8 of 16-bit numbers, then zeros.
template <typename T>
INLINE __m128i load_some(const T* p, int n) {
  if (n == 8) return load_half_bits(p);
  alignas(16) uint16_t bits[8] = {};
  for (int i = 0; i < n; ++i) bits[i] = p[i].bits;
  return load_half_bits(bits);
}
template <typename T>
INLINE void store_some(T* p, int n, __m128i x) {
  alignas(16) uint16_t bits[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(bits), x);
  for (int i = 0; i < n; ++i) p[i].bits = bits[i];
}
// The lower halves of 32 bits that are below 2^16.
INLINE __m128i pack(__m256i x) {
  return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

INLINE Unit load_units(const float* p, int n) { return _mm256_maskload_ps(p, lanes(n)); }
INLINE Unit load_units(const BFloat16* p, int n) {
  return widen(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_some(p, n)), 16));
}
INLINE Unit load_units(const Half* p, int n) { return _mm256_cvtph_ps(load_some(p, n)); }
INLINE void store_units(float* p, int n, Unit x) { _mm256_maskstore_ps(p, lanes(n), x); }
INLINE void store_units(BFloat16* p, int n, Unit x) {
  store_some(p, n, pack(_mm256_srli_epi32(narrow(x), 16)));
}
INLINE void store_units(Half* p, int n, Unit x) {
  store_some(p, n, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

template <typename T>
INLINE Vector load_points(const T* p, int n) {
  return load_units(p, n);
}
template <typename T>
INLINE void store_points(T* p, int n, Vector x) {
  store_units(p, n, x);
}

INLINE void load_pairs(const float* p, int n, Vector& x, Vector& y) {
  const Vector a = load_units(p, 2 * n), b = load_units(p + 8, 2 * n - 8);
  const Vector lower = _mm256_permute2f128_ps(a, b, 0x20);
  const Vector upper = _mm256_permute2f128_ps(a, b, 0x31);
  x = _mm256_shuffle_ps(lower, upper, 0x88);
  y = _mm256_shuffle_ps(lower, upper, 0xdd);
}
INLINE void load_pairs(const BFloat16* p, int n, Vector& x, Vector& y) {
  const __m256i both = _mm256_maskload_epi32(as_int(p), lanes(n));
  x = widen(_mm256_slli_epi32(both, 16));
  y = widen(_mm256_and_si256(both, upper_halves()));
}
INLINE void load_pairs(const Half* p, int n, Vector& x, Vector& y) {
  const __m256i both = _mm256_maskload_epi32(as_int(p), lanes(n));
  x = _mm256_cvtph_ps(pack(_mm256_and_si256(both, _mm256_set1_epi32(0xffff))));
  y = _mm256_cvtph_ps(pack(_mm256_srli_epi32(both, 16)));
}
INLINE void store_pairs(float* p, int n, Vector x, Vector y) {
  const Vector lower = _mm256_unpacklo_ps(x, y), upper = _mm256_unpackhi_ps(x, y);
  store_units(p, 2 * n, _mm256_permute2f128_ps(lower, upper, 0x20));
  store_units(p + 8, 2 * n - 8, _mm256_permute2f128_ps(lower, upper, 0x31));
}
INLINE void store_pairs(BFloat16* p, int n, Vector x, Vector y) {
  const __m256i both = _mm256_or_si256(
      _mm256_srli_epi32(narrow(x), 16), _mm256_and_si256(narrow(y), upper_halves()));
  _mm256_maskstore_epi32(as_int(p), lanes(n), both);
}
INLINE void store_pairs(Half* p, int n, Vector x, Vector y) {
  const __m256i a = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  const __m256i b = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT));
  _mm256_maskstore_epi32(as_int(p), lanes(n), _mm256_or_si256(a, _mm256_slli_epi32(b, 16)));
}

// 8 x 4 numbers by column.
INLINE void load_fours(const float* p, Vector (&column)[4]) {
  const Vector a = load(p), b = load(p + 8), c = load(p + 16), d = load(p + 24);
  const Vector ac = _mm256_permute2f128_ps(a, c, 0x20), ac_ = _mm256_permute2f128_ps(a, c, 0x31);
  const Vector bd = _mm256_permute2f128_ps(b, d, 0x20), bd_ = _mm256_permute2f128_ps(b, d, 0x31);
  // Rows 0 and 4, 1 and 5, 2 and 6, 3 and 7.
  const Vector low02 = _mm256_unpacklo_ps(ac, bd), high02 = _mm256_unpackhi_ps(ac, bd);
  const Vector low13 = _mm256_unpacklo_ps(ac_, bd_), high13 = _mm256_unpackhi_ps(ac_, bd_);
  column[0] = _mm256_unpacklo_ps(low02, low13);
  column[1] = _mm256_unpackhi_ps(low02, low13);
  column[2] = _mm256_unpacklo_ps(high02, high13);
  column[3] = _mm256_unpackhi_ps(high02, high13);
}

#include "dcnv3_cpu_kernels.h"

constexpr Level kLevel = level("avx2");

}  // namespace

const Level* avx2_level() { return &kLevel; }

}  // namespace dcnv3

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

const dcnv3::Level* dcnv3::avx2_level() { return nullptr; }

#endif
