// Vectors of 8 channels in 256-bit registers, for AVX2 and AVX-512. Included inside an unnamed
// namespace. AVX-512 takes them too: with 512 bits a channel vector of one group would not be
// shared by anything, so that as many broadcasts of weights are loaded for fewer, no faster loads.

using Unit = __m256;

INLINE Unit unit(float x) { return _mm256_set1_ps(x); }
INLINE Unit fma(Unit a, Unit b, Unit c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Unit load_unit(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store_unit(float* p, Unit x) { _mm256_storeu_ps(p, x); }
INLINE bool any_nan_unit(Unit x) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)) != 0;
}

// 16-bit storage in the upper halves of 32 bits.
INLINE Unit widen(__m256i upper) { return _mm256_castsi256_ps(upper); }
INLINE __m256i narrow(Unit x) {  // to nearest, ties to even; the lower halves are arbitrary
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  return _mm256_castps_si256(_mm256_blendv_ps(
      _mm256_castsi256_ps(rounded), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)),
      _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
INLINE __m256i upper_halves() { return _mm256_set1_epi32(static_cast<int>(0xffff0000)); }

INLINE __m256i load_bits(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
INLINE __m128i load_half_bits(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}

// A block of 16 channels.
INLINE void load_block(const float* x, Unit& p, Unit& q) {
  p = _mm256_loadu_ps(x);
  q = _mm256_loadu_ps(x + 8);
}
INLINE void load_block(const BFloat16* x, Unit& p, Unit& q) {
  const __m256i both = load_bits(x);
  p = widen(_mm256_slli_epi32(both, 16));
  q = widen(_mm256_and_si256(both, upper_halves()));
}
INLINE void load_block(const Half* x, Unit& p, Unit& q) {
  p = _mm256_cvtph_ps(load_half_bits(x));
  q = _mm256_cvtph_ps(load_half_bits(x + 8));
}
INLINE void store_block(float* x, Unit p, Unit q) {
  _mm256_storeu_ps(x, p);
  _mm256_storeu_ps(x + 8, q);
}
INLINE void store_block(BFloat16* x, Unit p, Unit q) {
  const __m256i both = _mm256_or_si256(
      _mm256_srli_epi32(narrow(p), 16), _mm256_and_si256(narrow(q), upper_halves()));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), both);
}
INLINE void store_block(Half* x, Unit p, Unit q) {
  __m128i* bits = reinterpret_cast<__m128i*>(x);
  _mm_storeu_si128(bits, _mm256_cvtps_ph(p, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(bits + 1, _mm256_cvtps_ph(q, _MM_FROUND_TO_NEAREST_INT));
}

// The sums of the lanes of four and of eight units, which take a fraction of one each.
INLINE Unit add_halves(Unit a, Unit b) {  // a0+a2 b0+b2 a1+a3 b1+b3, and so the upper lanes
  return _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
}
INLINE Unit add_quarters(Unit ab, Unit cd) {  // a b c d: sums of the lower lanes, of the upper ones
  const __m256d x = _mm256_castps_pd(ab), y = _mm256_castps_pd(cd);
  return _mm256_add_ps(
      _mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
}
INLINE void store_sums_of_four(float* p, const Unit* u) {
  const Unit sums = add_quarters(add_halves(u[0], u[1]), add_halves(u[2], u[3]));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}
INLINE void store_sums_of_eight(float* p, const Unit* u) {
  const Unit a = add_quarters(add_halves(u[0], u[1]), add_halves(u[2], u[3]));
  const Unit b = add_quarters(add_halves(u[4], u[5]), add_halves(u[6], u[7]));
  _mm256_storeu_ps(
      p, _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)));
}
