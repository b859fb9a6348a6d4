// DCNv3's forward pass for the TensorRT plugin. The kernel, its plans and its choices are those of
// the PyTorch operator: ops_dcnv3/csrc. tests/launcher_on_cpu.cpp runs this file without a GPU.
#include "trt_dcnv3_launcher.h"

#include <cuda_runtime.h>

#include <type_traits>

#include "dcnv3_cuda_dispatch.cuh"

namespace {

struct Launch {
  cudaStream_t stream;
  cudaError_t* error;

  template <typename... Parameters, typename... Values>
  void operator()(
      void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
      const Values&... values) const {
    if (blocks > dcnv3::kMaxBlocks) {
      *error = cudaErrorInvalidConfiguration;
      return;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    *error = cudaLaunchKernelEx(&config, kernel, Parameters(values)...);
  }
};

template <typename T>
cudaError_t forward(
    const dcnv3::Geometry& s, const void* input, const void* offset, const void* mask, void* output,
    cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  dcnv3::run_forward(
      s, dcnv3::separate_layout(s), static_cast<const T*>(input), static_cast<const T*>(offset),
      static_cast<const T*>(mask), static_cast<T*>(output), Launch{stream, &error});
  return error;
}

}  // namespace

int trt_dcnv3_forward(
    int32_t type, const trt_dcnv3::Arguments* arguments, int64_t batch, int64_t height,
    int64_t width, const void* input, const void* offset, const void* mask, void* output,
    void* stream) {
  const trt_dcnv3::Arguments& a = *arguments;
  dcnv3::Geometry s{};
  s.batch = batch;
  s.height = height;
  s.width = width;
  s.out_height = trt_dcnv3::output_size(height, a.kernel_h, a.stride_h, a.pad_h, a.dilation_h);
  s.out_width = trt_dcnv3::output_size(width, a.kernel_w, a.stride_w, a.pad_w, a.dilation_w);
  s.kernel_h = a.kernel_h;
  s.kernel_w = a.kernel_w;
  s.stride_h = a.stride_h;
  s.stride_w = a.stride_w;
  s.pad_h = a.pad_h;
  s.pad_w = a.pad_w;
  s.dilation_h = a.dilation_h;
  s.dilation_w = a.dilation_w;
  s.group = a.group;
  s.group_channels = a.group_channels;
  s.offset_scale = a.offset_scale;
  s.remove_center = a.remove_center != 0;
  if (s.out_pixels() == 0) return cudaSuccess;
  const auto queue = static_cast<cudaStream_t>(stream);
  switch (type) {
    case kTrtDcnv3Float: return forward<float>(s, input, offset, mask, output, queue);
    case kTrtDcnv3Half: return forward<__half>(s, input, offset, mask, output, queue);
    case kTrtDcnv3BFloat16: return forward<__nv_bfloat16>(s, input, offset, mask, output, queue);
    default: return cudaErrorInvalidValue;
  }
}

const char* trt_dcnv3_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
