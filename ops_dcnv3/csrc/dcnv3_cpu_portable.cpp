// The CPU kernels for any processor, in GCC's and clang's vectors of four, which are the registers
// of SSE2 and of NEON (arm64).
#include "dcnv3_cpu.h"

#if defined(__GNUC__)
#include "dcnv3_cpu_macros.h"

namespace dcnv3 {
namespace {

typedef float Four __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));

template <typename To, typename From>
INLINE To read(const From* from) {
  To to;
  __builtin_memcpy(&to, from, sizeof to);
  return to;
}
template <typename To, typename From>
INLINE To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "two views of the same bits");
  return read<To>(&from);
}
INLINE Four four(float x) { return Four{x, x, x, x}; }
INLINE Four choose(Ints condition, Four yes, Four no) {
  return same_bits<Four>((same_bits<Ints>(yes) & condition) | (same_bits<Ints>(no) & ~condition));
}
INLINE Ints whole(Four x) { return __builtin_convertvector(x, Ints); }

struct Vector {
  Four low, high;
};
using Unit = Vector;
constexpr int kLanes = 8;

INLINE Vector operator+(Vector a, Vector b) { return {a.low + b.low, a.high + b.high}; }
INLINE Vector operator-(Vector a, Vector b) { return {a.low - b.low, a.high - b.high}; }
INLINE Vector operator*(Vector a, Vector b) { return {a.low * b.low, a.high * b.high}; }
INLINE Four fma(Four a, Four b, Four c) {
#if defined(__FP_FAST_FMAF) || defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < 4; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}
INLINE Vector fma(Vector a, Vector b, Vector c) {
  return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
}
INLINE Vector splat(float x) { return {four(x), four(x)}; }
INLINE Vector load(const float* p) { return {read<Four>(p), read<Four>(p + 4)}; }
INLINE void store(float* p, Vector x) { __builtin_memcpy(p, &x, sizeof x); }
INLINE Vector where_less(Vector a, Vector b, Vector yes, Vector no) {
  return {choose(a.low < b.low, yes.low, no.low), choose(a.high < b.high, yes.high, no.high)};
}
INLINE Vector min(Vector a, Vector b) { return where_less(a, b, a, b); }
INLINE Vector max(Vector a, Vector b) { return where_less(b, a, a, b); }
INLINE Vector truncate(Vector x) {  // of numbers below 2^31
  return {
      __builtin_convertvector(whole(x.low), Four), __builtin_convertvector(whole(x.high), Four)};
}
INLINE Vector nearest(Vector x) {  // of small numbers: 1.5 * 2^23 leaves no bits for a fraction
  return (x + splat(12582912)) - splat(12582912);
}
INLINE Four times_power_of_two(Four x, Four n) {
  return same_bits<Four>(same_bits<Ints>(x) + whole(n) * (1 << 23));
}
INLINE Vector times_power_of_two(Vector x, Vector n) {
  return {times_power_of_two(x.low, n.low), times_power_of_two(x.high, n.high)};
}
INLINE bool any(Ints x) { return ((x[0] | x[1]) | (x[2] | x[3])) != 0; }
INLINE bool any_beyond(Vector x, float limit) {
  const Ints low = (x.low <= four(limit)) & (x.low >= four(-limit));
  const Ints high = (x.high <= four(limit)) & (x.high >= four(-limit));
  return any(~(low & high));
}
INLINE bool any_nan(Vector x) { return any((x.low != x.low) | (x.high != x.high)); }
INLINE void store_product(uint32_t* p, Vector x, int32_t factor) {
  const Bits product[2] = {
      same_bits<Bits>(whole(x.low)) * static_cast<uint32_t>(factor),
      same_bits<Bits>(whole(x.high)) * static_cast<uint32_t>(factor)};
  __builtin_memcpy(p, product, sizeof product);
}

// 16-bit storage, in the lower halves of 32 bits.
INLINE Four widen(Bits x, BFloat16) { return same_bits<Four>(x << 16); }
INLINE Four widen(Bits x, Half) {
  const Bits sign = (x & 0x8000) << 16;
  // The exponent moves by a product, which takes care of subnormal numbers too.
  const Four finite = same_bits<Four>((x & 0x7fff) << 13) * four(0x1p112f);
  const Ints special = same_bits<Ints>(x & 0x7c00) == 0x7c00;
  return same_bits<Four>(
      (same_bits<Bits>(finite) | (same_bits<Bits>(special) & 0x7f800000u)) | sign);
}
INLINE Bits narrow(Four x) {  // to BFloat16: to nearest, ties to even
  const Bits bits = same_bits<Bits>(x);
  const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Bits nan = same_bits<Bits>(x != x);
  return (rounded & ~nan) | (nan & 0x7fc0);
}

// n numbers, then zeros.
template <typename T>
INLINE void copy_some(T* to, const T* from, int n) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}
INLINE Vector load_eight(const float* p) { return load(p); }
template <typename T>
INLINE Vector load_eight(const T* p) {
  const Bits low = {p[0].bits, p[1].bits, p[2].bits, p[3].bits};
  const Bits high = {p[4].bits, p[5].bits, p[6].bits, p[7].bits};
  return {widen(low, T()), widen(high, T())};
}
INLINE void store_eight(float* p, Vector x) { store(p, x); }
INLINE void store_eight(BFloat16* p, Vector x) {
  const Bits low = narrow(x.low), high = narrow(x.high);
  for (int i = 0; i < 4; ++i) {
    p[i].bits = static_cast<uint16_t>(low[i]);
    p[i + 4].bits = static_cast<uint16_t>(high[i]);
  }
}
INLINE void store_eight(Half* p, Vector x) {
  for (int i = 0; i < 4; ++i) {
    p[i] = Half(x.low[i]);
    p[i + 4] = Half(x.high[i]);
  }
}

template <typename T>
INLINE Vector load_points(const T* p, int n) {
  if (n == 8) return load_eight(p);
  T some[8];
  __builtin_memset(some, 0, sizeof some);
  copy_some(some, p, n);
  return load_eight(some);
}
template <typename T>
INLINE void store_points(T* p, int n, Vector x) {
  if (n == 8) return store_eight(p, x);
  T some[8];
  store_eight(some, x);
  copy_some(p, some, n);
}
template <typename T>
INLINE void load_pairs(const T* p, int n, Vector& x, Vector& y) {
  const Vector a = load_points(p, n < 4 ? 2 * n : 8);
  const Vector b = n > 4 ? load_points(p + 8, 2 * n - 8) : splat(0);
  x = {Four{a.low[0], a.low[2], a.high[0], a.high[2]},
       Four{b.low[0], b.low[2], b.high[0], b.high[2]}};
  y = {Four{a.low[1], a.low[3], a.high[1], a.high[3]},
       Four{b.low[1], b.low[3], b.high[1], b.high[3]}};
}
template <typename T>
INLINE void store_pairs(T* p, int n, Vector x, Vector y) {
  const Four a = {x.low[0], y.low[0], x.low[1], y.low[1]};
  const Four b = {x.low[2], y.low[2], x.low[3], y.low[3]};
  const Four c = {x.high[0], y.high[0], x.high[1], y.high[1]};
  const Four d = {x.high[2], y.high[2], x.high[3], y.high[3]};
  store_points(p, n < 4 ? 2 * n : 8, Vector{a, b});
  if (n > 4) store_points(p + 8, 2 * n - 8, Vector{c, d});
}
// 8 x 4 numbers by column.
INLINE void load_fours(const float* p, Vector (&column)[4]) {
  Four row[8];
  for (int i = 0; i < 8; ++i) row[i] = read<Four>(p + 4 * i);
  for (int j = 0; j < 4; ++j) {
    column[j] = {Four{row[0][j], row[1][j], row[2][j], row[3][j]},
                 Four{row[4][j], row[5][j], row[6][j], row[7][j]}};
  }
}

INLINE Unit unit(float x) { return splat(x); }
INLINE Unit load_unit(const float* p) { return load(p); }
INLINE void store_unit(float* p, Unit x) { store(p, x); }
INLINE bool any_nan_unit(Unit x) { return any_nan(x); }
template <typename T>
INLINE Unit load_units(const T* p, int n) {
  return load_points(p, n);
}
template <typename T>
INLINE void store_units(T* p, int n, Unit x) {
  store_points(p, n, x);
}
template <typename T>
INLINE void load_block(const T* x, Unit& p, Unit& q) {
  p = load_eight(x);
  q = load_eight(x + 8);
}
INLINE void load_block(const BFloat16* x, Unit& p, Unit& q) {
  const Bits low = read<Bits>(x), high = read<Bits>(x + 8);
  p = {same_bits<Four>(low << 16), same_bits<Four>(high << 16)};
  q = {same_bits<Four>(low & 0xffff0000), same_bits<Four>(high & 0xffff0000)};
}
template <typename T>
INLINE void store_block(T* x, Unit p, Unit q) {
  store_eight(x, p);
  store_eight(x + 8, q);
}
INLINE void store_block(BFloat16* x, Unit p, Unit q) {
  const Bits both[2] = {narrow(p.low) | narrow(q.low) << 16, narrow(p.high) | narrow(q.high) << 16};
  __builtin_memcpy(static_cast<void*>(x), both, sizeof both);
}
INLINE float sum(Unit x) {
  const Four half = x.low + x.high;
  return (half[0] + half[2]) + (half[1] + half[3]);
}
INLINE void store_sums_of_four(float* p, const Unit* u) {
  for (int i = 0; i < 4; ++i) p[i] = sum(u[i]);
}
INLINE void store_sums_of_eight(float* p, const Unit* u) {
  for (int i = 0; i < 8; ++i) p[i] = sum(u[i]);
}

#include "dcnv3_cpu_kernels.h"

constexpr Level kLevel = level("portable");

}  // namespace

const Level* portable_level() { return &kLevel; }

}  // namespace dcnv3

#else

const dcnv3::Level* dcnv3::portable_level() { return nullptr; }

#endif
