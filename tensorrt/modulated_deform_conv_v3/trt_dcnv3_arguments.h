// The attributes of a TRTDCNv3 node, and the sizes that follow from them. Plain C++: neither CUDA nor
// TensorRT is included, so that this file is tested everywhere.
//
// DCNv3: InternImage (arXiv 2211.05778), section 3.1. Tensors as in ops_dcnv3:
//   input   (N, H, W, C), C = group * group_channels
//   offset  (N, Ho, Wo, group * P * 2), P = kernel_h * kernel_w - remove_center
//   mask    (N, Ho, Wo, group * P)
//   output  (N, Ho, Wo, C)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <sstream>
#include <string>

namespace trt_dcnv3 {

// 32 bits: what ONNX parsers hand over.
struct Arguments {
  int32_t kernel_h, kernel_w;
  int32_t stride_h, stride_w;
  int32_t pad_h, pad_w;
  int32_t dilation_h, dilation_w;
  int32_t group, group_channels;
  int32_t remove_center;
  float offset_scale;
};

// The integers among them, with the names of the node's attributes.
using IntegerMember = int32_t Arguments::*;
struct IntegerArgument {
  const char* name;
  IntegerMember member;
  int32_t least;
  bool required;
};
constexpr IntegerArgument kIntegers[] = {
    {"kernel_h", &Arguments::kernel_h, 1, true},
    {"kernel_w", &Arguments::kernel_w, 1, true},
    {"stride_h", &Arguments::stride_h, 1, true},
    {"stride_w", &Arguments::stride_w, 1, true},
    {"pad_h", &Arguments::pad_h, 0, true},
    {"pad_w", &Arguments::pad_w, 0, true},
    {"dilation_h", &Arguments::dilation_h, 1, true},
    {"dilation_w", &Arguments::dilation_w, 1, true},
    {"group", &Arguments::group, 1, true},
    {"group_channels", &Arguments::group_channels, 1, true},
    {"remove_center", &Arguments::remove_center, 0, false},  // old files lack it: 0
};
constexpr int32_t kIntegerCount = sizeof(kIntegers) / sizeof(kIntegers[0]);
constexpr const char* kScaleName = "offset_scale";
constexpr const char* kUnusedName = "im2col_step";  // accepted; the kernel has no such step

constexpr int64_t kUnknown = -1;  // a size that is not known before the engine runs
constexpr int32_t kLargest = (1 << 30) - 1;  // as ops_dcnv3: products of two fit into 64 bits

inline int64_t points(const Arguments& a) {
  return int64_t{a.kernel_h} * a.kernel_w - (a.remove_center != 0 ? 1 : 0);
}

// Output pixels along one axis of `in` pixels: floor((in + 2 pad - dilation (kernel - 1) - 1) /
// stride) + 1, and 0 where the kernel does not fit.
inline int64_t output_size(
    int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  return std::max<int64_t>(in + 2 * pad - dilation * (kernel - 1) - 1 + stride, 0) / stride;
}

// What is wrong with the attributes; empty if nothing is.
inline std::string problem(const Arguments& a) {
  std::ostringstream text;
  for (const IntegerArgument& argument : kIntegers) {
    const int32_t value = a.*argument.member;
    if (value < argument.least || value > kLargest) {
      text << argument.name << " must be at least " << argument.least << " and less than 2^30, got "
           << value;
      return text.str();
    }
  }
  if (a.remove_center > 1) {
    text << "remove_center must be 0 or 1, got " << a.remove_center;
  } else if (points(a) * 2 > kLargest / a.group) {
    text << "group * kernel_h * kernel_w * 2 must be less than 2^30, got " << a.group << " * "
         << a.kernel_h << " * " << a.kernel_w << " * 2";
  } else if (int64_t{a.group} * a.group_channels > kLargest) {
    text << "group * group_channels must be less than 2^30, got " << a.group << " * "
         << a.group_channels;
  } else if (!std::isfinite(a.offset_scale)) {
    text << "offset_scale must be finite, got " << a.offset_scale;
  }
  return text.str();
}

// Sizes of the four tensors; kUnknown for what is open.
struct Shapes {
  int64_t input[4], offset[4], mask[4], output[4];
};

inline std::string listed(const int64_t* sizes) {
  std::ostringstream text;
  text << "(";
  for (int i = 0; i < 4; ++i) {
    text << (i ? ", " : "");
    if (sizes[i] == kUnknown) {
      text << "?";
    } else {
      text << sizes[i];
    }
  }
  text << ")";
  return text.str();
}

// What is wrong with the sizes that are known; empty if nothing is. The kernel reads what it is
// told to read, so nothing runs before this is empty.
inline std::string problem(const Arguments& a, const Shapes& shapes) {
  const auto side = [](int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    return in == kUnknown ? kUnknown : output_size(in, kernel, stride, pad, dilation);
  };
  const int64_t n = shapes.input[0], channels = int64_t{a.group} * a.group_channels;
  const int64_t h = side(shapes.input[1], a.kernel_h, a.stride_h, a.pad_h, a.dilation_h);
  const int64_t w = side(shapes.input[2], a.kernel_w, a.stride_w, a.pad_w, a.dilation_w);
  const int64_t masks = a.group * points(a);
  const struct {
    const char* name;
    const char* meaning;
    const int64_t* got;
    int64_t expected[4];
  } rows[] = {
      {"input", "(N, H, W, group * group_channels)", shapes.input,
       {n, shapes.input[1], shapes.input[2], channels}},
      {"offset", "(N, Ho, Wo, group * P * 2)", shapes.offset, {n, h, w, 2 * masks}},
      {"mask", "(N, Ho, Wo, group * P)", shapes.mask, {n, h, w, masks}},
      {"output", "(N, Ho, Wo, group * group_channels)", shapes.output, {n, h, w, channels}},
  };
  for (const auto& row : rows) {
    for (int i = 0; i < 4; ++i) {
      if (row.got[i] == kUnknown || row.expected[i] == kUnknown || row.got[i] == row.expected[i]) {
        continue;
      }
      return std::string(row.name) + " must be " + row.meaning + " = " + listed(row.expected) +
             ", got " + listed(row.got);
    }
  }
  return {};
}

}  // namespace trt_dcnv3
