// The CUDA kernels' source with the same plans and choices as on a GPU, run by cuda_emulation.h:
// indexing, synchronisation and arithmetic are tested on machines without a GPU.
#include "cuda_emulation.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "../csrc/dcnv3_cuda_dispatch.cuh"

using namespace dcnv3;

namespace {

struct Call {
  Geometry geometry;
  PointLayout layout;
  int64_t type;  // 0 double, 1 float, 2 half, 3 bfloat16
  int64_t seed, deterministic, processors;
};

template <typename Run>
void with_type(int64_t type, Run&& run) {
  if (type == 0) run(static_cast<double*>(nullptr));
  if (type == 1) run(static_cast<float*>(nullptr));
  if (type == 2) run(static_cast<c10::Half*>(nullptr));
  if (type == 3) run(static_cast<c10::BFloat16*>(nullptr));
}


struct Launcher {
  unsigned seed;
  template <typename Kernel, typename... Arguments>
  void operator()(
      Kernel kernel, int64_t blocks, int threads, int64_t shared_bytes,
      const Arguments&... arguments) const {
    emulation::run(seed, kernel, blocks, threads, shared_bytes, arguments...);
  }
};

}  // namespace

extern "C" void forward(
    const Call* call, const void* input, const void* offset, const void* mask, void* output) {
  with_type(call->type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    run_forward(
        call->geometry, call->layout, static_cast<const T*>(input), static_cast<const T*>(offset),
        static_cast<const T*>(mask), static_cast<T*>(output),
        Launcher{static_cast<unsigned>(call->seed)});
  });
}

extern "C" void point_gradients(
    const Call* call, const void* grad_output, const void* input, const void* offset,
    const void* mask, void* grad_offset, void* grad_mask) {
  with_type(call->type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    run_point_gradients(
        call->geometry, call->layout, static_cast<const T*>(grad_output),
        static_cast<const T*>(input), static_cast<const T*>(offset), static_cast<const T*>(mask),
        static_cast<T*>(grad_offset), static_cast<T*>(grad_mask),
        Launcher{static_cast<unsigned>(call->seed)});
  });
}

// Returns whether `grad_input` was written; else the gradient is in `sums`.
extern "C" bool input_gradient(
    const Call* call, const void* grad_output, const void* offset, const void* mask, void* sums,
    void* grad_input) {
  bool owned = false;
  with_type(call->type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const ScatterPlan plan = plan_input_gradient(
        call->geometry, call->layout, static_cast<const T*>(grad_output),
        static_cast<const T*>(offset), call->deterministic != 0, call->processors);
    owned = plan.owned;
    run_input_gradient(
        call->geometry, call->layout, plan, static_cast<const T*>(grad_output),
        static_cast<const T*>(offset), static_cast<const T*>(mask),
        static_cast<typename Storage<T>::acc_t*>(owned ? nullptr : sums),
        static_cast<T*>(owned ? grad_input : nullptr),
        Launcher{static_cast<unsigned>(call->seed)});
  });
  return owned;
}
