// What the plugin calls: DCNv3's forward pass on a CUDA stream. Plain C functions, exported by the
// library, so that they can be called without TensorRT too (Python: ctypes).
#pragma once

#include "trt_dcnv3_arguments.h"

#if defined(_WIN32)
#define TRT_DCNV3_API extern "C" __declspec(dllexport)
#else
#define TRT_DCNV3_API extern "C" __attribute__((visibility("default")))
#endif

enum TrtDcnv3Type : int32_t { kTrtDcnv3Float = 0, kTrtDcnv3Half = 1, kTrtDcnv3BFloat16 = 2 };

// Enqueues the forward pass. All tensors are contiguous, of type `type`, in memory of the current
// device; `stream` is a cudaStream_t. The sizes are not checked here.
// Returns the launch's cudaError_t: 0 for success. Half types are computed in float32.
TRT_DCNV3_API int trt_dcnv3_forward(
    int32_t type, const trt_dcnv3::Arguments* arguments, int64_t batch, int64_t height,
    int64_t width, const void* input, const void* offset, const void* mask, void* output,
    void* stream);

// Name and sentence of an error of `trt_dcnv3_forward`.
TRT_DCNV3_API const char* trt_dcnv3_error(int error);
