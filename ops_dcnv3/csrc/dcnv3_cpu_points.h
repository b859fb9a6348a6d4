// Sampling points of one output pixel and several groups, in vectors of points: where each lies and
// its four weights, the softmax, and the gradients of offsets and masks. Included once per
// instruction set, by dcnv3_cpu_kernels.h.
//
// Borders need no branch: the upper left neighbour is clamped to [0, W - 2] x [0, H - 2], and the
// weight of a neighbour is the hat function of its distance to the point. So the four pixels at the
// clamped position get the right weights wherever the point is: zeros outside the image, and for
// NaN, because every min and max gives its second argument where one of them is NaN.

constexpr int kRoom = kMaxPoints + 32;  // vectors are stored whole
constexpr float kSafeLogit = 30;        // exp and sums of it stay far from the limits of float

struct Points {
  alignas(64) float weight[4][kRoom];  // by neighbour, times the mask
  alignas(64) uint32_t where[kRoom];   // the upper left neighbour, in bytes from the first pixel
  alignas(64) float mask[kRoom];       // with softmax: exp(logit), times a constant of the group
  alignas(64) float grid_x[kRoom], grid_y[kRoom];  // undeformed, from the window's first corner
  alignas(64) float inverse[kRoom];    // by group: 1 / (sum of its masks); 1 without softmax
};

// What only the backward pass needs.
struct PointGradients {
  alignas(64) uint32_t tile_where[kRoom];  // as `where`, in the sums of the input's gradient
  alignas(64) float right[kRoom], below[kRoom];  // of the clamped neighbour
  alignas(64) float dots[4 * kRoom];   // grad_output . pixel, of each point's four neighbours
  alignas(64) float mask[kRoom], along_mask[kRoom];  // with softmax: normalised, its gradient
  alignas(64) float inverse[kRoom], mean[kRoom];  // by point: Points::inverse, mean of along_mask
};

struct Frame {
  float scale, last_x, last_y, width;
  int32_t pitch, tile_pitch;  // bytes from one pixel to the next
};

// Points that follow each other in the tensors: those of all groups, or of one.
template <typename T>
struct Run {
  const T *offset, *mask;
  int first, count;
};

INLINE Vector hat_here(Vector d) { return max(min(splat(1) - d, splat(1) + d), splat(0)); }
INLINE Vector hat_next(Vector d) { return max(min(d, splat(2) - d), splat(0)); }

// exp(x) for |x| <= 87, within 2 units in the last place: 2^n * exp(r), |r| <= log(2) / 2.
INLINE Vector exponential(Vector x) {
  const Vector n = nearest(x * splat(1.44269504f));
  const Vector r = fma(n, splat(-1.42860682e-6f), fma(n, splat(-0.693145752f), x));  // n * log(2)
  Vector p = fma(r, splat(1.f / 5040), splat(1.f / 720));
  p = fma(p, r, splat(1.f / 120));
  p = fma(p, r, splat(1.f / 24));
  p = fma(p, r, splat(1.f / 6));
  p = fma(p, r, splat(1.f / 2));
  return times_power_of_two(fma(p, r * r, r) + splat(1), n);
}

// exp(logit - largest logit) of one group; NaN if a logit is not finite (the exact kernel's work).
template <typename T>
NOINLINE void shifted_exponentials(const T* logits, int count, float* result) {
  alignas(64) float shifted[kRoom] = {};
  for (int t = 0; t < count; t += kLanes) {
    store(shifted + t, load_points(logits + t, count - t < kLanes ? count - t : kLanes));
  }
  float largest = shifted[0], spoiled = 0;
  for (int t = 0; t < count; ++t) {
    if (shifted[t] > largest) largest = shifted[t];
    spoiled += shifted[t] * 0;
  }
  for (int t = 0; t < count; t += kLanes) {
    const Vector x = load(shifted + t) - splat(largest);
    store(shifted + t, exponential(max(x, splat(-87))) + splat(spoiled));
  }
  for (int t = 0; t < count; ++t) result[t] = shifted[t];
}

// The softmax over each group, but for the division. exp needs no shift for logits of usual size,
// and is more accurate without; a group of others is shifted by its largest.
template <typename T>
INLINE void softmax_run(const Run<T>& run, int points, Points& a) {
  bool unsafe = false;
  for (int j = 0; j < run.count; j += kLanes) {
    const Vector logit = load_points(run.mask + j, run.count - j < kLanes ? run.count - j : kLanes);
    unsafe |= any_beyond(logit, kSafeLogit);
    store(a.mask + run.first + j, exponential(max(min(logit, splat(80)), splat(-80))));
  }
  if (!unsafe) return;
  for (int start = 0; start < run.count; start += points) {
    bool beyond = false;
    for (int t = 0; t < points; t += kLanes) {
      const int n = points - t < kLanes ? points - t : kLanes;
      beyond |= any_beyond(load_points(run.mask + start + t, n), kSafeLogit);
    }
    if (beyond) shifted_exponentials(run.mask + start, points, a.mask + run.first + start);
  }
}

INLINE void group_sums(const Points& a, int groups, int points, float* inverse) {
  for (int g = 0; g < groups; ++g) {
    float even = 0, odd = 0;
    const float* mask = a.mask + g * points;
    for (int t = 0; t + 1 < points; t += 2) even += mask[t], odd += mask[t + 1];
    if (points % 2 != 0) even += mask[points - 1];
    inverse[g] = 1 / (even + odd);
  }
}

template <bool kBackward, typename T>
INLINE void locate_run(
    const Frame& f, const Run<T>& run, bool softmax, float first_x, float first_y, Points& a,
    PointGradients* b) {
  for (int j = 0; j < run.count; j += kLanes) {
    const int n = run.count - j < kLanes ? run.count - j : kLanes, at = run.first + j;
    Vector x, y;
    load_pairs(run.offset + 2 * j, n, x, y);
    x = fma(load(a.grid_x + at) + x, splat(f.scale), splat(first_x));
    y = fma(load(a.grid_y + at) + y, splat(f.scale), splat(first_y));
    const Vector column = truncate(max(min(x, splat(f.last_x)), splat(0)));
    const Vector row = truncate(max(min(y, splat(f.last_y)), splat(0)));
    const Vector right = x - column, below = y - row;
    const Vector mask = softmax ? load(a.mask + at) : load_points(run.mask + j, n);
    const Vector left_share = hat_here(right), right_share = hat_next(right);
    const Vector upper = hat_here(below) * mask, lower = hat_next(below) * mask;
    store(a.weight[0] + at, upper * left_share);
    store(a.weight[1] + at, upper * right_share);
    store(a.weight[2] + at, lower * left_share);
    store(a.weight[3] + at, lower * right_share);
    const Vector pixel = fma(row, splat(f.width), column);  // exact: fewer than 2^24 pixels
    store_product(a.where + at, pixel, f.pitch);
    if constexpr (kBackward) {
      if constexpr (sizeof(T) < sizeof(float)) {
        store_product(b->tile_where + at, pixel, f.tile_pitch);
      }
      if (!softmax) store(a.mask + at, mask);
      store(b->right + at, right);
      store(b->below + at, below);
    }
  }
}

// The derivative of hat_here(d) * here + hat_next(d) * next, from the right at a kink; 0 outside.
INLINE Vector slope(Vector d, Vector here, Vector next) {
  const Vector left = where_less(splat(-1), d, here, splat(0));
  const Vector right = where_less(d, splat(2), splat(0) - next, splat(0));
  return where_less(d, splat(0), left, where_less(d, splat(1), next - here, right));
}

// From the dot products to the gradients of the offsets and of the (normalised) masks. Returns
// whether a dot product may not be finite.
template <typename T>
INLINE bool gradients_run(
    const Frame& f, const Run<T>& run, bool softmax, const Points& a, PointGradients& b,
    T* grad_offset, T* grad_mask) {
  Vector spoiled = splat(0);
  for (int j = 0; j < run.count; j += kLanes) {
    const int n = run.count - j < kLanes ? run.count - j : kLanes, at = run.first + j;
    Vector dot[4];
    load_fours(b.dots + 4 * at, dot);
    const Vector right = load(b.right + at), below = load(b.below + at);
    Vector mask = load(a.mask + at);
    if (softmax) {
      mask = mask * load(b.inverse + at);
      store(b.mask + at, mask);
    }
    const Vector left_share = hat_here(right), right_share = hat_next(right);
    const Vector upper_share = hat_here(below), lower_share = hat_next(below);
    const Vector upper = fma(left_share, dot[0], right_share * dot[1]);
    const Vector lower = fma(left_share, dot[2], right_share * dot[3]);
    const Vector left_sum = fma(upper_share, dot[0], lower_share * dot[2]);
    const Vector right_sum = fma(upper_share, dot[1], lower_share * dot[3]);
    const Vector along_mask = fma(upper_share, upper, lower_share * lower);
    const Vector scaled = mask * splat(f.scale);
    const Vector grad_x = scaled * slope(right, left_sum, right_sum);
    const Vector grad_y = scaled * slope(below, upper, lower);
    spoiled = fma(along_mask, splat(0), spoiled);  // shows any dot product that is not finite
    store_pairs(grad_offset + 2 * j, n, grad_x, grad_y);
    if (softmax) {
      store(b.along_mask + at, along_mask);
    } else {
      store_points(grad_mask + j, n, along_mask);
    }
  }
  return any_nan(spoiled);
}

// Writes `value` for all points of a group, and maybe for some after it.
INLINE void fill(float* first, int points, float value) {
  for (int t = 0; t < points; t += kLanes) store(first + t, splat(value));
}

INLINE void softmax_means(PointGradients& b, int groups, int points) {
  for (int g = 0; g < groups; ++g) {
    float sum = 0;
    for (int t = g * points; t < g * points + points; ++t) {
      sum += b.mask[t] * b.along_mask[t];
    }
    fill(b.mean + g * points, points, sum);
  }
}

// The Jacobian of the softmax.
template <typename T>
INLINE void softmax_gradients_run(
    const Run<T>& run, const PointGradients& b, T* grad_mask) {
  for (int j = 0; j < run.count; j += kLanes) {
    const int n = run.count - j < kLanes ? run.count - j : kLanes, at = run.first + j;
    const Vector centred = load(b.along_mask + at) - load(b.mean + at);
    store_points(grad_mask + j, n, load(b.mask + at) * centred);
  }
}
