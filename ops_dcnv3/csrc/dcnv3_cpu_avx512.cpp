// The CPU kernels for x86-64 with AVX-512 (F, VL, BW, DQ), AVX2, FMA and F16C.
//
// No header of the standard library may be included after the pragmas below, see dcnv3_cpu.h.
#include "dcnv3_cpu.h"

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of the header: GCC bug 105593
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")
#endif
#include <immintrin.h>

#include "dcnv3_cpu_macros.h"

namespace dcnv3 {
namespace {

#include "dcnv3_cpu_units_avx.h"

using Vector = __m512;
constexpr int kLanes = 16;

INLINE __mmask16 lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

INLINE Vector splat(float x) { return _mm512_set1_ps(x); }
INLINE Vector load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, Vector x) { _mm512_storeu_ps(p, x); }
INLINE Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vector min(Vector a, Vector b) { return _mm512_min_ps(a, b); }
INLINE Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
INLINE Vector truncate(Vector x) { return _mm512_roundscale_ps(x, 3 | _MM_FROUND_NO_EXC); }
INLINE Vector nearest(Vector x) { return _mm512_roundscale_ps(x, 0 | _MM_FROUND_NO_EXC); }
INLINE Vector times_power_of_two(Vector x, Vector n) { return _mm512_scalef_ps(x, n); }
INLINE Vector where_less(Vector a, Vector b, Vector yes, Vector no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
INLINE bool any_beyond(Vector x, float limit) {
  return _mm512_cmp_ps_mask(_mm512_abs_ps(x), splat(limit), _CMP_NLE_UQ) != 0;
}
INLINE bool any_nan(Vector x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) != 0; }
INLINE void store_product(uint32_t* p, Vector x, int32_t factor) {
  _mm512_storeu_si512(
      p, _mm512_mullo_epi32(_mm512_cvttps_epi32(x), _mm512_set1_epi32(factor)));
}

// 16-bit storage in the upper halves of 32 bits.
INLINE Vector widen(__m512i upper) { return _mm512_castsi512_ps(upper); }
INLINE __m512i narrow(Vector x) {  // to nearest, ties to even; the lower halves are arbitrary
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_mask_mov_epi32(
      rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
}

INLINE Vector load_points(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
INLINE Vector load_points(const BFloat16* p, int n) {
  return widen(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(n), p)), 16));
}
INLINE Vector load_points(const Half* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes(n), p));
}

INLINE void load_pairs(const float* p, int n, Vector& x, Vector& y) {
  const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << (2 * n)) - 1);
  const Vector a = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
  const Vector b = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), p + 16);
  const __m512i even =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  x = _mm512_permutex2var_ps(a, even, b);
  y = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}
INLINE void load_pairs(const BFloat16* p, int n, Vector& x, Vector& y) {
  const __m512i both = _mm512_maskz_loadu_epi32(lanes(n), p);
  x = widen(_mm512_slli_epi32(both, 16));
  y = widen(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
INLINE void load_pairs(const Half* p, int n, Vector& x, Vector& y) {
  const __m512i both = _mm512_maskz_loadu_epi32(lanes(n), p);
  x = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
  y = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
}

INLINE void store_points(float* p, int n, Vector x) { _mm512_mask_storeu_ps(p, lanes(n), x); }
INLINE void store_points(BFloat16* p, int n, Vector x) {
  _mm256_mask_storeu_epi16(
      p, lanes(n), _mm512_cvtepi32_epi16(_mm512_srli_epi32(narrow(x), 16)));
}
INLINE void store_points(Half* p, int n, Vector x) {
  _mm256_mask_storeu_epi16(p, lanes(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

INLINE void store_pairs(float* p, int n, Vector x, Vector y) {
  const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << (2 * n)) - 1);
  const __m512i lower = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), _mm512_permutex2var_ps(x, lower, y));
  _mm512_mask_storeu_ps(
      p + 16, static_cast<__mmask16>(mask >> 16), _mm512_permutex2var_ps(x, upper, y));
}
INLINE void store_pairs(BFloat16* p, int n, Vector x, Vector y) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  const __m512i both = _mm512_or_si512(
      _mm512_srli_epi32(narrow(x), 16), _mm512_and_si512(narrow(y), upper));
  _mm512_mask_storeu_epi32(p, lanes(n), both);
}
INLINE void store_pairs(Half* p, int n, Vector x, Vector y) {
  const __m512i a = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  const __m512i b = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT));
  _mm512_mask_storeu_epi32(p, lanes(n), _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
}

// 16 x 4 numbers by column.
INLINE void load_fours(const float* p, Vector (&column)[4]) {
  const Vector a = load(p), b = load(p + 16), c = load(p + 32), d = load(p + 48);
  const __m512i even = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(2));
  const Vector ab01 = _mm512_permutex2var_ps(a, even, b), cd01 = _mm512_permutex2var_ps(c, even, d);
  const Vector ab23 = _mm512_permutex2var_ps(a, odd, b), cd23 = _mm512_permutex2var_ps(c, odd, d);
  column[0] = _mm512_shuffle_f32x4(ab01, cd01, 0x44);
  column[1] = _mm512_shuffle_f32x4(ab01, cd01, 0xee);
  column[2] = _mm512_shuffle_f32x4(ab23, cd23, 0x44);
  column[3] = _mm512_shuffle_f32x4(ab23, cd23, 0xee);
}

INLINE Unit load_units(const float* p, int n) {
  return _mm256_maskz_loadu_ps(static_cast<__mmask8>((1u << n) - 1), p);
}
INLINE Unit load_units(const BFloat16* p, int n) {
  const __m128i bits = _mm_maskz_loadu_epi16(static_cast<__mmask8>((1u << n) - 1), p);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
INLINE Unit load_units(const Half* p, int n) {
  return _mm256_cvtph_ps(_mm_maskz_loadu_epi16(static_cast<__mmask8>((1u << n) - 1), p));
}

INLINE void store_units(float* p, int n, Unit x) {
  _mm256_mask_storeu_ps(p, static_cast<__mmask8>((1u << n) - 1), x);
}
INLINE void store_units(BFloat16* p, int n, Unit x) {
  _mm_mask_storeu_epi16(
      p, static_cast<__mmask8>((1u << n) - 1),
      _mm256_cvtepi32_epi16(_mm256_srli_epi32(narrow(x), 16)));
}
INLINE void store_units(Half* p, int n, Unit x) {
  _mm_mask_storeu_epi16(
      p, static_cast<__mmask8>((1u << n) - 1), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

#include "dcnv3_cpu_kernels.h"

constexpr Level kLevel = level("avx512");

}  // namespace

const Level* avx512_level() { return &kLevel; }

}  // namespace dcnv3

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

const dcnv3::Level* dcnv3::avx512_level() { return nullptr; }

#endif
