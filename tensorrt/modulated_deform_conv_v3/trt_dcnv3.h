// TensorRT plugin TRTDCNv3, version "1", namespace "": DCNv3 of InternImage (arXiv 2211.05778).
// A thin shell: attributes and sizes are in trt_dcnv3_arguments.h, the kernel is behind
// trt_dcnv3_launcher.h.
//
// TensorRT 10 and 11 (IPluginV3). Nothing here needs a symbol of libnvinfer, and only interfaces
// whose virtual functions are the same in both major versions are called.
#pragma once

#include <NvInferRuntime.h>
#include <NvInferVersion.h>

#include <string>
#include <vector>

#include "trt_dcnv3_arguments.h"

#if NV_TENSORRT_MAJOR < 10
#error "TRTDCNv3 needs the headers of TensorRT 10 or newer (IPluginV3). For TensorRT 8.5 to 9 export \
the ONNX file with --inline: it needs no plugin."
#endif

namespace trt_dcnv3 {

// One node. float32, float16 and bfloat16; all tensors of one type and in linear format, which is
// channels last here, because the node's tensors are (N, H, W, C).
class Dcnv3Plugin final : public nvinfer1::IPluginV3,
                          public nvinfer1::IPluginV3OneCore,
                          public nvinfer1::IPluginV3OneBuild,
                          public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Dcnv3Plugin(const Arguments& arguments);

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  // IPluginV3OneBuild
  int32_t configurePlugin(
      const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
      const nvinfer1::DynamicPluginTensorDesc* out, int32_t outputs) noexcept override;
  int32_t getOutputDataTypes(
      nvinfer1::DataType* output_types, int32_t outputs, const nvinfer1::DataType* input_types,
      int32_t inputs) const noexcept override;
  int32_t getOutputShapes(
      const nvinfer1::DimsExprs* in, int32_t inputs, const nvinfer1::DimsExprs* shape_inputs,
      int32_t shape_input_count, nvinfer1::DimsExprs* out, int32_t outputs,
      nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(
      int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs,
      int32_t outputs) noexcept override;
  int32_t getNbOutputs() const noexcept override;
  const char* getTimingCacheID() noexcept override;

  // IPluginV3OneRuntime
  int32_t onShapeChange(
      const nvinfer1::PluginTensorDesc* in, int32_t inputs, const nvinfer1::PluginTensorDesc* out,
      int32_t outputs) noexcept override;
  int32_t enqueue(
      const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
      const void* const* inputs, void* const* outputs, void* workspace,
      cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  Arguments arguments_;
  std::string timing_cache_id_;
  std::vector<nvinfer1::PluginField> fields_;  // point into arguments_
  nvinfer1::PluginFieldCollection field_collection_{};
};

// Makes plugins from the attributes of an ONNX node or the fields of a serialised engine.
class Dcnv3PluginCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Dcnv3PluginCreator();
  // nullptr, and a line on stderr that says why, for attributes without a meaning.
  nvinfer1::IPluginV3* createPlugin(
      const char* name, const nvinfer1::PluginFieldCollection* fields,
      nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

 private:
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection field_collection_{};
};

}  // namespace trt_dcnv3
