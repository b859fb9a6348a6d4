// Stands in for CUDA's header of this name where the launcher is compiled for the CPU: kernels run
// at once, on the emulation of ops_dcnv3/tests/cuda_emulation.h, in host memory.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "../../../ops_dcnv3/tests/cuda_emulation.h"

using __half = c10::Half;
using __nv_bfloat16 = c10::BFloat16;

using cudaStream_t = struct CUstream_st*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9;

struct dim3 {
  dim3(unsigned x = 1) : x(x) {}
  unsigned x;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <typename... Parameters, typename... Values>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Values&&... values) {
  emulation::run(
      1, kernel, config->gridDim.x, static_cast<int>(config->blockDim.x),
      static_cast<int64_t>(config->dynamicSmemBytes), Parameters(values)...);
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : "an emulated error";
}
