// The operators on CPU tensors: checks, memory, the choice of kernels and of what runs in parallel.
//
// Every number is computed by one task and in one order, whatever the number of threads is: a task
// owns output pixels in the forward pass, and a batch element with some of its groups in the
// backward pass. So results are bitwise the same for any number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "dcnv3_cpu.h"
#include "dcnv3_op.h"

namespace dcnv3 {

namespace {

constexpr int64_t kForwardGrain = 64;  // output pixels per task at least
constexpr int64_t kTileNumbers = 1 << 18;  // sums per task for 16-bit storage, if it has a choice

// --- which instruction set -----------------------------------------------------------------------

bool has_avx2() {
#if defined(__x86_64__) && defined(__GNUC__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // older compilers do not know the name "f16c"
  const bool has_f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
  return has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__) && defined(__GNUC__)
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

// The best level that this machine has; with a name, that one.
const Level* find_level(const std::string& name) {
  const std::pair<const Level*, bool> levels[] = {
      {avx512_level(), has_avx512()}, {avx2_level(), has_avx2()}, {portable_level(), true}};
  std::string names;
  for (const auto& [level, runs] : levels) {
    if (level == nullptr || !runs) continue;
    if (name.empty() || name == level->name) return level;
    names += (names.empty() ? "" : ", ") + std::string(level->name);
  }
  TORCH_CHECK_VALUE(
      name.empty(), "dcnv3: CPU kernels '", name, "' do not exist on this machine, but: ", names,
      " (asked for by the environment variable OPS_DCNV3_CPU or set_cpu_level)");
  return nullptr;
}

std::atomic<const Level*> chosen_level{nullptr};

const Level* level() {
  const Level* result = chosen_level.load();
  if (result == nullptr) {
    const char* name = std::getenv("OPS_DCNV3_CPU");
    result = find_level(name == nullptr ? "" : name);
    chosen_level.store(result);
  }
  return result;
}

template <typename T>
Kernels<T> kernels(const Geometry& s) {
  const Kernels<T> exact = {exact_forward_pixels<T>, exact_backward_groups<T>};
  if constexpr (std::is_same_v<T, double>) {
    return exact;
  } else {
    const Level* best = level();
    if (best == nullptr || !vectors_fit(s, sizeof(T))) return exact;
    if constexpr (std::is_same_v<T, float>) return best->f32;
    else if constexpr (std::is_same_v<T, Half>) return best->f16;
    else return best->bf16;
  }
}

// --- what runs in parallel -----------------------------------------------------------------------

template <typename T>
void run_forward(const Call<T>& call) {
  const Kernels<T> kernel = kernels<T>(call.s);
  at::parallel_for(0, call.s.out_pixels(), kForwardGrain, [&](int64_t begin, int64_t end) {
    kernel.forward(call, begin, end);
  });
}

template <typename T>
void run_backward(const Call<T>& call) {
  const Kernels<T> kernel = kernels<T>(call.s);
  const Geometry& s = call.s;
  // As few parts as keep the threads equally busy: a part with all groups reads memory in order.
  const int64_t threads = at::get_num_threads();
  int64_t parts = 1, numbers_per_group = 0;
  while (parts < s.group && s.batch * parts % threads != 0 && s.batch * parts < 4 * threads) {
    ++parts;
  }
  int64_t groups = (s.group + parts - 1) / parts;
  if constexpr (sizeof(T) < sizeof(float)) {
    numbers_per_group = std::max<int64_t>(1, s.height * s.width * s.group_channels);
    groups = std::min(groups, std::max<int64_t>(1, kTileNumbers / numbers_per_group));
  }
  parts = (s.group + groups - 1) / groups;
  at::parallel_for(0, s.batch * parts, 1, [&](int64_t begin, int64_t end) {
    std::unique_ptr<Accumulator<T>[]> tile;
    if (numbers_per_group != 0) tile.reset(new Accumulator<T>[groups * numbers_per_group]);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % parts * groups;
      kernel.backward(
          call, task / parts, first, std::min(s.group, first + groups), tile.get());
    }
  });
}

// Calls run(T()) with the storage type of a dtype.
template <typename Run>
void for_storage(at::ScalarType dtype, Run&& run) {
  switch (dtype) {
    case at::kDouble: return run(double());
    case at::kFloat: return run(float());
    case at::kHalf: return run(Half());
    case at::kBFloat16: return run(BFloat16());
    default:
      TORCH_CHECK_TYPE(
          false, "dcnv3: input must be float64, float32, float16 or bfloat16, got ", dtype);
  }
}

template <typename T>
const T* read(const at::Tensor& tensor, int64_t start = 0) {
  return static_cast<const T*>(tensor.const_data_ptr()) + start;
}

template <typename T>
T* write(const at::Tensor& tensor, int64_t start = 0) {
  return static_cast<T*>(tensor.mutable_data_ptr()) + start;
}

at::Tensor new_output(const Geometry& s, const at::Tensor& input) {
  return at::empty({s.batch, s.out_height, s.out_width, s.channels()}, input.options());
}

at::Tensor new_like(const at::Tensor& tensor) {
  return at::empty_like(tensor, {}, {}, {}, {}, at::MemoryFormat::Contiguous);
}

// --- the operators -------------------------------------------------------------------------------

at::Tensor forward_cpu(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, DCNV3_ARGUMENTS) {
  const Geometry s = check(input, offset, mask, DCNV3_ARGUMENT_NAMES);
  const at::Tensor input_ = input.contiguous(), offset_ = offset.contiguous(),
                   mask_ = mask.contiguous(), output = new_output(s, input);
  for_storage(input.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    Call<T> call{s, separate_layout(s), read<T>(input_), read<T>(offset_), read<T>(mask_)};
    call.output = write<T>(output);
    run_forward(call);
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& mask, DCNV3_ARGUMENTS) {
  const Geometry s = check(input, offset, mask, DCNV3_ARGUMENT_NAMES);
  check_grad_output(grad_output, input, s);
  const at::Tensor grad_output_ = grad_output.contiguous(), input_ = input.contiguous(),
                   offset_ = offset.contiguous(), mask_ = mask.contiguous();
  const at::Tensor grad_input = new_like(input), grad_offset = new_like(offset),
                   grad_mask = new_like(mask);
  for_storage(input.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    Call<T> call{s, separate_layout(s), read<T>(input_), read<T>(offset_), read<T>(mask_)};
    call.grad_output = read<T>(grad_output_);
    call.grad_input = write<T>(grad_input);
    call.grad_offset = write<T>(grad_offset);
    call.grad_mask = write<T>(grad_mask);
    run_backward(call);
  });
  return {grad_input, grad_offset, grad_mask};
}

at::Tensor fused_forward_cpu(
    const at::Tensor& input, const at::Tensor& offset_mask, DCNV3_ARGUMENTS, bool softmax,
    bool interleaved) {
  const Geometry s = check_fused(input, offset_mask, DCNV3_ARGUMENT_NAMES);
  const int64_t last = offset_mask.size(3), first_mask = fused_mask_start(s, interleaved);
  const at::Tensor input_ = input.contiguous(), points = offset_mask.contiguous(),
                   output = new_output(s, input);
  for_storage(input.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    Call<T> call{
        s, fused_layout(s, last, softmax, interleaved), read<T>(input_), read<T>(points),
        read<T>(points, first_mask)};
    call.output = write<T>(output);
    run_forward(call);
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor> fused_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset_mask,
    DCNV3_ARGUMENTS, bool softmax, bool interleaved) {
  const Geometry s = check_fused(input, offset_mask, DCNV3_ARGUMENT_NAMES);
  check_grad_output(grad_output, input, s);
  const int64_t last = offset_mask.size(3), first_mask = fused_mask_start(s, interleaved);
  const int64_t used = 3 * s.group * s.points();
  const at::Tensor grad_output_ = grad_output.contiguous(), input_ = input.contiguous(),
                   points = offset_mask.contiguous();
  const at::Tensor grad_input = new_like(input), grad_points = new_like(offset_mask);
  if (last > used) grad_points.narrow(3, used, last - used).zero_();
  for_storage(input.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    Call<T> call{
        s, fused_layout(s, last, softmax, interleaved), read<T>(input_), read<T>(points),
        read<T>(points, first_mask)};
    call.grad_output = read<T>(grad_output_);
    call.grad_input = write<T>(grad_input);
    call.grad_offset = write<T>(grad_points);
    call.grad_mask = write<T>(grad_points, first_mask);
    run_backward(call);
  });
  return {grad_input, grad_points};
}

}  // namespace

std::string cpu_level() { return level() == nullptr ? "exact" : level()->name; }

void set_cpu_level(const std::string& name) { chosen_level.store(find_level(name)); }

TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("dcnv3", forward_cpu);
  m.impl("dcnv3_backward", backward_cpu);
  m.impl("dcnv3_fused", fused_forward_cpu);
  m.impl("dcnv3_fused_backward", fused_backward_cpu);
}

}  // namespace dcnv3
