// Drives a plugin library through TensorRT's C++ interfaces, as a builder and a runtime would, but
// without TensorRT: only its headers are needed. tests/harness.py writes the commands.
//
//   plugin_harness LIBRARY < commands
//
// One command per line; the answer is one line too, `refused` where the plugin refuses.
//   create NAME=VALUE ...      makes the plugin that the next commands are about
//   recreate                   ... from its serialised fields, as when an engine is loaded
//   clone | attach             ... by its own methods
//   fields | names | cache     serialised fields; names of the attributes; timing cache id
//   core                       name, version, namespace, outputs, types and sizes of workspace
//   shapes N H W C             sizes of the output; a leading ? means: not known before it runs
//   formats                    accepted (type, format) of every tensor
//   configure D*16 | change D*16   4 sizes each of input, offset, mask, output
//   enqueue TYPE D*16 FOLDER   runs on FOLDER/{input,offset,mask}.bin, writes FOLDER/output.bin
//
// Compiled with HARNESS_CUDA the memory is a GPU's; else the library runs an emulated kernel.
#include <NvInferRuntime.h>
#include <NvInferVersion.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#if defined(HARNESS_CUDA)
#include <cuda_runtime_api.h>
#endif

using namespace nvinfer1;

namespace {

[[noreturn]] void stop(const std::string& what) {
  std::cerr << "plugin_harness: " << what << "\n";
  std::exit(2);
}

// --- sizes that a builder would hand over: numbers, some of which count as unknown ---------------

class Expression final : public IDimensionExpr, public apiv::VDimensionExpr {
 public:
  Expression(int64_t value, bool constant) : value_(value), constant_(constant) { mImpl = this; }
  ~Expression() noexcept override = default;
  bool isConstant() const override { return constant_; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }
  int64_t value() const { return value_; }
  bool constant() const { return constant_; }

 private:
  int64_t value_;
  bool constant_;
};

int64_t divided_down(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
 public:
  Builder() { mImpl = this; }
  ~Builder() noexcept override = default;
  const IDimensionExpr* constant(int64_t value) override { return make(value, true); }
  const IDimensionExpr* operation(
      DimensionOperation op, const IDimensionExpr& first, const IDimensionExpr& second) override {
    const auto& x = static_cast<const Expression&>(first);
    const auto& y = static_cast<const Expression&>(second);
    const int64_t a = x.value(), b = y.value();
    int64_t value = 0;
    switch (op) {
      case DimensionOperation::kSUM: value = a + b; break;
      case DimensionOperation::kPROD: value = a * b; break;
      case DimensionOperation::kMAX: value = std::max(a, b); break;
      case DimensionOperation::kMIN: value = std::min(a, b); break;
      case DimensionOperation::kSUB: value = a - b; break;
      case DimensionOperation::kEQUAL: value = a == b; break;
      case DimensionOperation::kLESS: value = a < b; break;
      case DimensionOperation::kFLOOR_DIV: value = divided_down(a, b); break;
      case DimensionOperation::kCEIL_DIV: value = -divided_down(-a, b); break;
    }
    return make(value, x.constant() && y.constant());
  }
  const IDimensionExpr* declareSizeTensor(
      int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
    stop("the output has no size tensor");
  }
  const IDimensionExpr* make(int64_t value, bool constant) {
    made_.push_back(std::make_unique<Expression>(value, constant));
    return made_.back().get();
  }

 private:
  std::vector<std::unique_ptr<Expression>> made_;
};

// --- memory --------------------------------------------------------------------------------------

#if defined(HARNESS_CUDA)
void check(cudaError_t error) {
  if (error != cudaSuccess) stop(cudaGetErrorString(error));
}
struct Buffer {
  explicit Buffer(const std::vector<char>& host) : bytes(host.size()) {
    check(cudaMalloc(&data, std::max<size_t>(bytes, 1)));
    check(cudaMemcpy(data, host.data(), bytes, cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data); }
  std::vector<char> read() {
    std::vector<char> host(bytes);
    check(cudaDeviceSynchronize());
    check(cudaMemcpy(host.data(), data, bytes, cudaMemcpyDeviceToHost));
    return host;
  }
  size_t bytes;
  void* data = nullptr;
};
#else
struct Buffer {
  explicit Buffer(const std::vector<char>& host)
      : bytes(host.size()), data(std::aligned_alloc(256, (bytes / 256 + 1) * 256)) {
    std::memcpy(data, host.data(), bytes);
  }
  ~Buffer() { std::free(data); }
  std::vector<char> read() {
    const char* const begin = static_cast<const char*>(data);
    return {begin, begin + bytes};
  }
  size_t bytes;
  void* data;
};
#endif

// --- the plugin and its capabilities -------------------------------------------------------------

struct Plugin {
  std::unique_ptr<IPluginV3> whole;
  template <typename Capability>
  Capability* as(PluginCapabilityType type) const {
    return static_cast<Capability*>(whole->getCapabilityInterface(type));
  }
  IPluginV3OneCore* core() const { return as<IPluginV3OneCore>(PluginCapabilityType::kCORE); }
  IPluginV3OneBuild* build() const { return as<IPluginV3OneBuild>(PluginCapabilityType::kBUILD); }
  IPluginV3OneRuntime* runtime() const {
    return as<IPluginV3OneRuntime>(PluginCapabilityType::kRUNTIME);
  }
};

std::string listed(const PluginFieldCollection& fields) {
  std::ostringstream text;
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    text << (i ? " " : "") << field.name;
    if (field.data == nullptr) continue;
    if (field.type == PluginFieldType::kINT32) {
      text << "=" << *static_cast<const int32_t*>(field.data);
    } else if (field.type == PluginFieldType::kFLOAT32) {
      text << "=" << *static_cast<const float*>(field.data);
    } else {
      stop(std::string("a type that is not expected, of field ") + field.name);
    }
  }
  return text.str();
}

// NAME=VALUE; a value with a point is a float, one that ends in L has 64 bits, other text a string.
class Fields {
 public:
  explicit Fields(std::istream& words) {
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      if (equals == std::string::npos) stop("NAME=VALUE expected, got " + word);
      entries_.push_back(std::make_unique<Entry>());
      Entry& entry = *entries_.back();
      entry.name = word.substr(0, equals);
      entry.text = word.substr(equals + 1);
      PluginField field(entry.name.c_str(), nullptr, PluginFieldType::kINT32, 1);
      char* end = nullptr;
      if (entry.text.find('.') != std::string::npos) {
        entry.real = std::strtof(entry.text.c_str(), &end);
        field.type = PluginFieldType::kFLOAT32;
        field.data = &entry.real;
      } else if (entry.text.back() == 'L') {
        entry.large = std::strtoll(entry.text.c_str(), &end, 10);
        field.type = PluginFieldType::kINT64;
        field.data = &entry.large;
      } else {
        entry.small = static_cast<int32_t>(std::strtol(entry.text.c_str(), &end, 10));
        field.data = &entry.small;
        if (*end != '\0') {
          field.type = PluginFieldType::kCHAR;
          field.data = entry.text.c_str();
          field.length = static_cast<int32_t>(entry.text.size());
        }
      }
      fields_.push_back(field);
    }
  }
  PluginFieldCollection collection() const {
    return {static_cast<int32_t>(fields_.size()), fields_.data()};
  }

 private:
  struct Entry {
    std::string name, text;
    int32_t small = 0;
    int64_t large = 0;
    float real = 0;
  };
  std::vector<std::unique_ptr<Entry>> entries_;
  std::vector<PluginField> fields_;
};

// 4 sizes each of input, offset, mask and output.
std::vector<PluginTensorDesc> descriptions(std::istream& words, DataType type) {
  std::vector<PluginTensorDesc> tensors(4);
  for (PluginTensorDesc& tensor : tensors) {
    tensor.dims.nbDims = 4;
    for (int i = 0; i < 4; ++i) words >> tensor.dims.d[i];
    tensor.type = type;
    tensor.format = TensorFormat::kLINEAR;
    tensor.scale = 1;
  }
  if (!words) stop("16 sizes expected");
  return tensors;
}

std::vector<DynamicPluginTensorDesc> open(const std::vector<PluginTensorDesc>& tensors) {
  std::vector<DynamicPluginTensorDesc> all;
  for (const PluginTensorDesc& tensor : tensors) {
    all.push_back({tensor, tensor.dims, tensor.dims, tensor.dims});
  }
  return all;
}

std::vector<char> contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) stop("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// --- commands ------------------------------------------------------------------------------------

std::string core(const Plugin& plugin) {
  IPluginV3OneCore& core = *plugin.core();
  IPluginV3OneBuild& build = *plugin.build();
  std::ostringstream text;
  text << core.getPluginName() << " " << core.getPluginVersion() << " '"
       << core.getPluginNamespace() << "' outputs=" << build.getNbOutputs();
  for (DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
    const DataType in[] = {type, type, type};
    DataType out = DataType::kINT32;
    if (build.getOutputDataTypes(&out, 1, in, 3) != 0 || out != type) return "refused";
  }
  std::istringstream sizes("1 4 4 8 1 4 4 18 1 4 4 9 1 4 4 8");
  const auto tensors = open(descriptions(sizes, DataType::kFLOAT));
  text << " workspace=" << build.getWorkspaceSize(tensors.data(), 3, tensors.data() + 3, 1)
       << " kinds=" << plugin.whole->getInterfaceInfo().kind << ","
       << core.getInterfaceInfo().kind << "," << build.getInterfaceInfo().kind << ","
       << plugin.runtime()->getInterfaceInfo().kind;
  return text.str();
}

std::string shapes(const Plugin& plugin, std::istream& words) {
  Builder builder;
  DimsExprs in[3] = {};
  for (DimsExprs& dims : in) dims.nbDims = 4;
  for (int i = 0; i < 4; ++i) {
    std::string word;
    words >> word;
    const bool is_open = !word.empty() && word[0] == '?';
    in[0].d[i] = builder.make(std::stoll(word.substr(is_open ? 1 : 0)), !is_open);
    in[1].d[i] = in[2].d[i] = builder.make(1, false);
  }
  DimsExprs out{};
  if (plugin.build()->getOutputShapes(in, 3, nullptr, 0, &out, 1, builder) != 0) return "refused";
  std::ostringstream text;
  for (int i = 0; i < out.nbDims; ++i) {
    const auto& size = static_cast<const Expression&>(*out.d[i]);
    text << (i ? " " : "") << (size.constant() ? "" : "?") << size.value();
  }
  return text.str();
}

// All accepted combinations of types and formats, as a search over the four tensors finds them.
std::string formats(const Plugin& plugin) {
  constexpr DataType types[] = {DataType::kFLOAT, DataType::kHALF, DataType::kINT8,
                                DataType::kINT32, DataType::kBF16, DataType::kINT64};
  constexpr const char* names[] = {"float", "half", "int8", "int32", "bfloat16", "int64"};
  constexpr TensorFormat layouts[] = {TensorFormat::kLINEAR, TensorFormat::kCHW2,
                                      TensorFormat::kHWC8, TensorFormat::kHWC,
                                      TensorFormat::kCHW32};
  std::ostringstream text;
  int accepted = 0;
  std::vector<DynamicPluginTensorDesc> tensors(4);
  const auto search = [&](auto&& self, int position, const std::string& so_far) -> void {
    if (position == 4) {
      text << (accepted++ ? " " : "") << so_far;
      return;
    }
    for (size_t t = 0; t < std::size(types); ++t) {
      for (size_t f = 0; f < std::size(layouts); ++f) {
        tensors[position].desc.type = types[t];
        tensors[position].desc.format = layouts[f];
        if (plugin.build()->supportsFormatCombination(position, tensors.data(), 3, 1)) {
          self(self, position + 1,
               so_far + (position ? "," : "") + names[t] + ":" + std::to_string(f));
        }
      }
    }
  };
  search(search, 0, "");
  return text.str();
}

std::string enqueue(const Plugin& plugin, std::istream& words) {
  std::string name, folder;
  words >> name;
  const DataType type = name == "float"  ? DataType::kFLOAT
                        : name == "half" ? DataType::kHALF
                                         : DataType::kBF16;
  const auto tensors = descriptions(words, type);
  words >> folder;
  Buffer input(contents(folder + "/input.bin")), offset(contents(folder + "/offset.bin"));
  Buffer mask(contents(folder + "/mask.bin"));
  size_t bytes = type == DataType::kFLOAT ? 4 : 2;
  for (int i = 0; i < 4; ++i) bytes *= tensors[3].dims.d[i];
  Buffer output(std::vector<char>(bytes, '\xff'));  // NaN where nothing is written
  const void* const inputs[] = {input.data, offset.data, mask.data};
  void* const outputs[] = {output.data};
  IPluginV3OneRuntime& runtime = *plugin.runtime();
  if (runtime.onShapeChange(tensors.data(), 3, tensors.data() + 3, 1) != 0) return "refused";
  if (runtime.enqueue(tensors.data(), tensors.data() + 3, inputs, outputs, nullptr, nullptr) != 0) {
    return "refused";
  }
  const std::vector<char> result = output.read();
  std::ofstream file(folder + "/output.bin", std::ios::binary);
  file.write(result.data(), static_cast<std::streamsize>(result.size()));
  return file ? "ok" : "cannot write the output";
}

std::string answer(IPluginCreatorV3One& creator, Plugin& plugin, const std::string& line) {
  std::istringstream words(line);
  std::string command;
  words >> command;
  const auto adopt = [&](IPluginV3* made) {
    if (made == nullptr) return std::string("refused");
    plugin.whole.reset(made);
    return std::string("ok");
  };
  if (command == "create") {
    const Fields fields(words);
    const PluginFieldCollection collection = fields.collection();
    return adopt(creator.createPlugin("node", &collection, TensorRTPhase::kBUILD));
  }
  if (command == "names") return listed(*creator.getFieldNames());
  if (plugin.whole == nullptr) return "refused";
  if (command == "recreate") {
    const PluginFieldCollection* const fields = plugin.runtime()->getFieldsToSerialize();
    return adopt(creator.createPlugin("node", fields, TensorRTPhase::kRUNTIME));
  }
  if (command == "clone") return adopt(plugin.whole->clone());
  if (command == "attach") return adopt(plugin.runtime()->attachToContext(nullptr));
  if (command == "fields") return listed(*plugin.runtime()->getFieldsToSerialize());
  if (command == "cache") return plugin.build()->getTimingCacheID();
  if (command == "core") return core(plugin);
  if (command == "shapes") return shapes(plugin, words);
  if (command == "formats") return formats(plugin);
  if (command == "enqueue") return enqueue(plugin, words);
  if (command == "configure" || command == "change") {
    const auto tensors = descriptions(words, DataType::kFLOAT);
    const auto all = open(tensors);
    const int32_t code =
        command == "change"
            ? plugin.runtime()->onShapeChange(tensors.data(), 3, tensors.data() + 3, 1)
            : plugin.build()->configurePlugin(all.data(), 3, all.data() + 3, 1);
    return code == 0 ? "ok" : "refused";
  }
  stop("unknown command " + command);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) stop("one argument expected: the plugin's library");
  void* const library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) stop(dlerror());
  using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
  const auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
  if (get_creators == nullptr || dlsym(library, "setLoggerFinder") == nullptr) stop(dlerror());
  int32_t creators = 0;
  IPluginCreatorInterface* const* const all = get_creators(creators);
  if (creators != 1) stop("one creator expected, got " + std::to_string(creators));
  if (std::string(all[0]->getInterfaceInfo().kind) != "PLUGIN CREATOR_V3ONE") {
    stop(std::string("not a creator of IPluginV3: ") + all[0]->getInterfaceInfo().kind);
  }
  Plugin plugin;
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << answer(static_cast<IPluginCreatorV3One&>(*all[0]), plugin, line) << std::endl;
  }
  return 0;
}
