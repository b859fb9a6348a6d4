// What dcnv3_cuda.cpp (PyTorch, compiled once) calls in dcnv3_cuda_kernels.cu (no PyTorch, compiled
// once per GPU architecture). Every function returns the launch's error.
#pragma once

#include <cuda_runtime_api.h>

#include "dcnv3_core.h"
#include "dcnv3_cuda_plan.h"

namespace dcnv3 {

enum class Type { kDouble, kFloat, kHalf, kBFloat16 };

cudaError_t launch_forward(
    Type type, const Geometry& s, const PointLayout& layout, const void* input, const void* offset,
    const void* mask, void* output, cudaStream_t stream);

cudaError_t launch_point_gradients(
    Type type, const Geometry& s, const PointLayout& layout, const void* grad_output,
    const void* input, const void* offset, const void* mask, void* grad_offset, void* grad_mask,
    cudaStream_t stream);

// See dcnv3_cuda_dispatch.cuh for what `sums` (double for double, else float) and `grad_input` are.
ScatterPlan plan_input_gradient(
    Type type, const Geometry& s, const PointLayout& layout, const void* grad_output,
    const void* offset, bool deterministic, int64_t processors);

cudaError_t launch_input_gradient(
    Type type, const Geometry& s, const PointLayout& layout, const ScatterPlan& plan,
    const void* grad_output, const void* offset, const void* mask, void* sums, void* grad_input,
    cudaStream_t stream);

}  // namespace dcnv3
