// The CUDA kernels for every storage type, and their launches. Includes nothing of PyTorch, whose
// headers would be compiled again for every GPU architecture.
#include "dcnv3_cuda_kernels.h"

#include "dcnv3_cuda_dispatch.cuh"

namespace dcnv3 {

namespace {

// Calls run(a null pointer to the storage type).
template <typename Run>
void with_type(Type type, Run&& run) {
  switch (type) {
    case Type::kDouble: run(static_cast<double*>(nullptr)); break;
    case Type::kFloat: run(static_cast<float*>(nullptr)); break;
    case Type::kHalf: run(static_cast<__half*>(nullptr)); break;
    case Type::kBFloat16: run(static_cast<__nv_bfloat16*>(nullptr)); break;
  }
}

struct Launcher {
  cudaStream_t stream;
  cudaError_t* error;

  template <typename... Parameters, typename... Arguments>
  void operator()(
      void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
      const Arguments&... arguments) const {
    if (blocks > kMaxBlocks) {
      *error = cudaErrorInvalidConfiguration;
      return;
    }
    if (shared_bytes > (48 << 10)) {
      *error = cudaFuncSetAttribute(
          reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
          static_cast<int>(shared_bytes));
      if (*error != cudaSuccess) return;
    }
    const dim3 grid(static_cast<unsigned>(blocks));
    kernel<<<grid, threads, static_cast<size_t>(shared_bytes), stream>>>(arguments...);
    *error = cudaGetLastError();
  }
};

}  // namespace

cudaError_t launch_forward(
    Type type, const Geometry& s, const PointLayout& layout, const void* input, const void* offset,
    const void* mask, void* output, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  with_type(type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    run_forward(
        s, layout, static_cast<const T*>(input), static_cast<const T*>(offset),
        static_cast<const T*>(mask), static_cast<T*>(output), Launcher{stream, &error});
  });
  return error;
}

cudaError_t launch_point_gradients(
    Type type, const Geometry& s, const PointLayout& layout, const void* grad_output,
    const void* input, const void* offset, const void* mask, void* grad_offset, void* grad_mask,
    cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  with_type(type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    run_point_gradients(
        s, layout, static_cast<const T*>(grad_output), static_cast<const T*>(input),
        static_cast<const T*>(offset), static_cast<const T*>(mask), static_cast<T*>(grad_offset),
        static_cast<T*>(grad_mask), Launcher{stream, &error});
  });
  return error;
}

ScatterPlan plan_input_gradient(
    Type type, const Geometry& s, const PointLayout& layout, const void* grad_output,
    const void* offset, bool deterministic, int64_t processors) {
  ScatterPlan plan{};
  with_type(type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    plan = plan_input_gradient(
        s, layout, static_cast<const T*>(grad_output), static_cast<const T*>(offset), deterministic,
        processors);
  });
  return plan;
}

cudaError_t launch_input_gradient(
    Type type, const Geometry& s, const PointLayout& layout, const ScatterPlan& plan,
    const void* grad_output, const void* offset, const void* mask, void* sums, void* grad_input,
    cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  with_type(type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using acc_t = typename Storage<T>::acc_t;
    run_input_gradient(
        s, layout, plan, static_cast<const T*>(grad_output), static_cast<const T*>(offset),
        static_cast<const T*>(mask), static_cast<acc_t*>(sums), static_cast<T*>(grad_input),
        Launcher{stream, &error});
  });
  return error;
}

}  // namespace dcnv3
