// The plugin's methods, and what TensorRT looks for in the library: getCreators.
#include "trt_dcnv3.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <stdexcept>

#include "trt_dcnv3_launcher.h"

namespace trt_dcnv3 {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

namespace {

constexpr const char* kName = "TRTDCNv3";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "";
constexpr int32_t kInputs = 3, kOutputs = 1;

// stderr, not TensorRT's logger: the virtual functions of ILoggerFinder differ between TensorRT 10
// and 11, and one library serves both.
int32_t fail(const std::string& message) noexcept {
  std::fprintf(stderr, "%s: %s\n", kName, message.c_str());
  return -1;
}

// Runs something that may throw (allocations) inside a function that must not.
template <typename Result, typename Run>
Result guarded(Result otherwise, Run&& run) noexcept {
  try {
    return run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", kName, error.what());
    return otherwise;
  }
}

bool has_tensors(int32_t inputs, int32_t outputs) {
  return inputs == kInputs && outputs == kOutputs;
}

std::string problem_of_count(int32_t inputs, int32_t outputs) {
  return "a node has 3 inputs (input, offset, mask) and 1 output, got " + std::to_string(inputs) +
         " and " + std::to_string(outputs);
}

bool is_supported(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

// Checks all sizes; TensorRT's -1 for open ones is kUnknown.
std::string problem_of(
    const Arguments& arguments, std::initializer_list<const nvinfer1::Dims*> tensors) {
  static const char* const names[] = {"input", "offset", "mask", "output"};
  Shapes shapes{};
  int64_t* const targets[] = {shapes.input, shapes.offset, shapes.mask, shapes.output};
  int index = 0;
  for (const nvinfer1::Dims* dims : tensors) {
    if (dims->nbDims != 4) {
      return std::string(names[index]) + " must have 4 dimensions, got " +
             std::to_string(dims->nbDims);
    }
    for (int i = 0; i < 4; ++i) targets[index][i] = dims->d[i];
    ++index;
  }
  return problem(arguments, shapes);
}

// A number from a field of any type that ONNX parsers and TensorRT's Python interface make.
double number(const PluginField& field) {
  if (field.data != nullptr && field.length == 1) {
    switch (field.type) {
      case PluginFieldType::kINT8: return *static_cast<const int8_t*>(field.data);
      case PluginFieldType::kINT16: return *static_cast<const int16_t*>(field.data);
      case PluginFieldType::kINT32: return *static_cast<const int32_t*>(field.data);
      case PluginFieldType::kINT64:
        return static_cast<double>(*static_cast<const int64_t*>(field.data));
      case PluginFieldType::kFLOAT32: return *static_cast<const float*>(field.data);
      case PluginFieldType::kFLOAT64: return *static_cast<const double*>(field.data);
      default: break;
    }
  }
  throw std::invalid_argument(
      std::string("attribute ") + field.name + " must be one number, got type " +
      std::to_string(static_cast<int32_t>(field.type)) + " and length " +
      std::to_string(field.length));
}

int32_t integer(const PluginField& field) {
  const double value = number(field);
  if (!(value >= -1 && value <= kLargest && value == std::floor(value))) {
    throw std::invalid_argument(
        std::string("attribute ") + field.name + " must be an integer from 0 to 2^30 - 1, got " +
        std::to_string(value));
  }
  return static_cast<int32_t>(value);
}

std::string known_names() {
  std::string names = kScaleName;
  for (const IntegerArgument& argument : kIntegers) names += std::string(", ") + argument.name;
  return names + ", " + kUnusedName;
}

// Throws std::invalid_argument for missing, unknown and meaningless attributes.
Arguments parse(const PluginFieldCollection& fields) {
  Arguments arguments{};
  bool found[kIntegerCount] = {}, found_scale = false;
  for (int32_t f = 0; f < fields.nbFields; ++f) {
    const PluginField& field = fields.fields[f];
    if (std::strcmp(field.name, kUnusedName) == 0) continue;
    if (std::strcmp(field.name, kScaleName) == 0) {
      arguments.offset_scale = static_cast<float>(number(field));
      found_scale = true;
      continue;
    }
    bool known = false;
    for (int32_t i = 0; i < kIntegerCount && !known; ++i) {
      if (std::strcmp(field.name, kIntegers[i].name) != 0) continue;
      arguments.*kIntegers[i].member = integer(field);
      found[i] = known = true;
    }
    if (!known) {
      throw std::invalid_argument(
          std::string("unknown attribute ") + field.name + "; there are " + known_names());
    }
  }
  for (int32_t i = 0; i < kIntegerCount; ++i) {
    if (kIntegers[i].required && !found[i]) {
      throw std::invalid_argument(std::string("attribute ") + kIntegers[i].name + " is missing");
    }
  }
  if (!found_scale) throw std::invalid_argument("attribute offset_scale is missing");
  const std::string wrong = problem(arguments);
  if (!wrong.empty()) throw std::invalid_argument(wrong);
  return arguments;
}

}  // namespace

Dcnv3Plugin::Dcnv3Plugin(const Arguments& arguments) : arguments_(arguments) {
  std::ostringstream id;
  id.precision(9);  // tells all floats apart
  for (const IntegerArgument& argument : kIntegers) id << arguments.*argument.member << "_";
  id << arguments.offset_scale;
  timing_cache_id_ = id.str();
}

nvinfer1::IPluginCapability* Dcnv3Plugin::getCapabilityInterface(
    PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Dcnv3Plugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(nullptr, [&] { return new Dcnv3Plugin(arguments_); });
}

const char* Dcnv3Plugin::getPluginName() const noexcept { return kName; }
const char* Dcnv3Plugin::getPluginVersion() const noexcept { return kVersion; }
const char* Dcnv3Plugin::getPluginNamespace() const noexcept { return kNamespace; }

int32_t Dcnv3Plugin::configurePlugin(
    const DynamicPluginTensorDesc* in, int32_t inputs, const DynamicPluginTensorDesc* out,
    int32_t outputs) noexcept {
  return guarded<int32_t>(-1, [&] {
    if (!has_tensors(inputs, outputs)) return fail(problem_of_count(inputs, outputs));
    const std::string wrong = problem_of(
        arguments_,
        {&in[0].desc.dims, &in[1].desc.dims, &in[2].desc.dims, &out[0].desc.dims});
    return wrong.empty() ? 0 : fail(wrong);
  });
}

int32_t Dcnv3Plugin::getOutputDataTypes(
    DataType* output_types, int32_t outputs, const DataType* input_types,
    int32_t inputs) const noexcept {
  return guarded<int32_t>(-1, [&] {
    if (!has_tensors(inputs, outputs)) return fail(problem_of_count(inputs, outputs));
    output_types[0] = input_types[0];
    return 0;
  });
}

int32_t Dcnv3Plugin::getOutputShapes(
    const DimsExprs* in, int32_t inputs, const DimsExprs*, int32_t, DimsExprs* out, int32_t outputs,
    nvinfer1::IExprBuilder& builder) noexcept {
  return guarded<int32_t>(-1, [&] {
    if (!has_tensors(inputs, outputs)) return fail(problem_of_count(inputs, outputs));
    if (in[0].nbDims != 4) {
      return fail("input must have 4 dimensions, got " + std::to_string(in[0].nbDims));
    }
    // `output_size` in the builder's operations, and no more of them than it takes: a size that
    // stays the same (stride 1) is seen to be the same.
    const auto side = [&](const nvinfer1::IDimensionExpr* size, int64_t kernel, int64_t stride,
                          int64_t pad, int64_t dilation) {
      const int64_t added = 2 * pad - dilation * (kernel - 1) - 1 + stride;
      if (added != 0) {
        size = builder.operation(DimensionOperation::kSUM, *size, *builder.constant(added));
      }
      if (stride != 1) {
        size = builder.operation(DimensionOperation::kFLOOR_DIV, *size, *builder.constant(stride));
      }
      if (added < 0) {
        size = builder.operation(DimensionOperation::kMAX, *size, *builder.constant(0));
      }
      return size;
    };
    const Arguments& a = arguments_;
    out[0].nbDims = 4;
    out[0].d[0] = in[0].d[0];
    out[0].d[1] = side(in[0].d[1], a.kernel_h, a.stride_h, a.pad_h, a.dilation_h);
    out[0].d[2] = side(in[0].d[2], a.kernel_w, a.stride_w, a.pad_w, a.dilation_w);
    out[0].d[3] = builder.constant(int64_t{a.group} * a.group_channels);
    return 0;
  });
}

bool Dcnv3Plugin::supportsFormatCombination(
    int32_t position, const DynamicPluginTensorDesc* tensors, int32_t inputs,
    int32_t outputs) noexcept {
  if (!has_tensors(inputs, outputs) || position < 0 || position >= kInputs + kOutputs) return false;
  const PluginTensorDesc& tensor = tensors[position].desc;
  return tensor.format == nvinfer1::TensorFormat::kLINEAR && is_supported(tensor.type) &&
         tensor.type == tensors[0].desc.type;
}

int32_t Dcnv3Plugin::getNbOutputs() const noexcept { return kOutputs; }

const char* Dcnv3Plugin::getTimingCacheID() noexcept { return timing_cache_id_.c_str(); }

int32_t Dcnv3Plugin::onShapeChange(
    const PluginTensorDesc* in, int32_t inputs, const PluginTensorDesc* out,
    int32_t outputs) noexcept {
  return guarded<int32_t>(-1, [&] {
    if (!has_tensors(inputs, outputs)) return fail(problem_of_count(inputs, outputs));
    const std::string wrong =
        problem_of(arguments_, {&in[0].dims, &in[1].dims, &in[2].dims, &out[0].dims});
    return wrong.empty() ? 0 : fail(wrong);
  });
}

int32_t Dcnv3Plugin::enqueue(
    const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
    void* const* outputs, void*, cudaStream_t stream) noexcept {
  return guarded<int32_t>(-1, [&] {
    const std::string wrong =
        problem_of(arguments_, {&in[0].dims, &in[1].dims, &in[2].dims, &out[0].dims});
    if (!wrong.empty()) return fail(wrong);
    if (!is_supported(in[0].type)) {
      return fail(
          "tensors must be float32, float16 or bfloat16, got type " +
          std::to_string(static_cast<int32_t>(in[0].type)));
    }
    const int32_t type = in[0].type == DataType::kFLOAT  ? kTrtDcnv3Float
                         : in[0].type == DataType::kHALF ? kTrtDcnv3Half
                                                         : kTrtDcnv3BFloat16;
    const nvinfer1::Dims& size = in[0].dims;
    const int error = trt_dcnv3_forward(
        type, &arguments_, size.d[0], size.d[1], size.d[2], inputs[0], inputs[1], inputs[2],
        outputs[0], stream);
    return error == 0 ? 0 : fail(std::string("the launch failed: ") + trt_dcnv3_error(error));
  });
}

nvinfer1::IPluginV3* Dcnv3Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();  // there is nothing in a context that it needs
}

const PluginFieldCollection* Dcnv3Plugin::getFieldsToSerialize() noexcept {
  return guarded<const PluginFieldCollection*>(nullptr, [&] {
    fields_.clear();
    for (const IntegerArgument& argument : kIntegers) {
      fields_.emplace_back(
          argument.name, &(arguments_.*argument.member), PluginFieldType::kINT32, 1);
    }
    fields_.emplace_back(kScaleName, &arguments_.offset_scale, PluginFieldType::kFLOAT32, 1);
    field_collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &field_collection_;
  });
}

Dcnv3PluginCreator::Dcnv3PluginCreator() {
  for (const IntegerArgument& argument : kIntegers) {
    fields_.emplace_back(argument.name, nullptr, PluginFieldType::kINT32, 1);
  }
  fields_.emplace_back(kScaleName, nullptr, PluginFieldType::kFLOAT32, 1);
  fields_.emplace_back(kUnusedName, nullptr, PluginFieldType::kINT32, 1);
  field_collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* Dcnv3PluginCreator::createPlugin(
    const char* name, const PluginFieldCollection* fields, nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(nullptr, [&] {
    if (fields == nullptr) throw std::invalid_argument("no attributes");
    try {
      return new Dcnv3Plugin(parse(*fields));
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(
          std::string(name == nullptr ? "" : name) + ": " + error.what());
    }
  });
}

const PluginFieldCollection* Dcnv3PluginCreator::getFieldNames() noexcept {
  return &field_collection_;
}
const char* Dcnv3PluginCreator::getPluginName() const noexcept { return kName; }
const char* Dcnv3PluginCreator::getPluginVersion() const noexcept { return kVersion; }
const char* Dcnv3PluginCreator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace trt_dcnv3

// What TensorRT asks of a library of plugins: IPluginRegistry::loadLibrary, and with it Python's
// load_library and trtexec's --dynamicPlugins, refuses one without either of these two functions.
TRT_DCNV3_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static trt_dcnv3::Dcnv3PluginCreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}

// The logger is not used, see `fail`.
TRT_DCNV3_API void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

#if defined(TRT_DCNV3_REGISTER)
// For a library that is loaded by other means (mmdeploy's): registered as the library is loaded.
// This needs libnvinfer, and headers of its major version: the registry's virtual functions differ
// between TensorRT 10 and 11.
namespace {
using trt_dcnv3::Dcnv3PluginCreator;
REGISTER_TENSORRT_PLUGIN(Dcnv3PluginCreator);
}  // namespace
#endif
