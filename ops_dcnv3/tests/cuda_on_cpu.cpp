// Runs the CUDA kernels' source on the CPU, one thread after the other, so that their indexing is
// tested on machines without a GPU.
#include <algorithm>
#include <cstdint>

struct Dim {
  int64_t x = 1;
};
static thread_local Dim gridDim, blockDim, blockIdx, threadIdx;

#define __global__
#define __launch_bounds__(threads)
#define __restrict__
template <typename T>
void atomicAdd(T* address, T value) {
  *address += value;
}

#include "../csrc/dcnv3_cuda_kernels.cuh"

template <typename Kernel, typename... Arguments>
void launch(int64_t blocks, Kernel kernel, Arguments... arguments) {
  gridDim.x = blocks;
  blockDim.x = dcnv3::kThreads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < dcnv3::kThreads; ++threadIdx.x) kernel(arguments...);
  }
}

extern "C" void forward(
    const dcnv3::Geometry* geometry, int64_t blocks, const double* input, const double* offset,
    const double* mask, double* output) {
  launch(blocks, dcnv3::forward_kernel<double, double>, *geometry, input, offset, mask, output);
}

extern "C" void backward(
    const dcnv3::Geometry* geometry, int64_t blocks, const double* grad_output,
    const double* input, const double* offset, const double* mask, double* grad_input,
    double* grad_offset, double* grad_mask) {
  launch(
      blocks, dcnv3::backward_kernel<double, double>, *geometry, grad_output, input, offset, mask,
      grad_input, grad_offset, grad_mask);
}
