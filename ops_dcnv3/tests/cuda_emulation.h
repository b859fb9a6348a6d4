// Just enough of CUDA to run the kernels' source on the CPU: the threads of a block are fibers that
// stop where they have to wait for each other. The order in which they go on, and that of the
// blocks, comes from a seed, so a missing synchronisation or an order-dependent sum shows. Shared
// memory is exactly as large as the launch asks for (address sanitizers see what lies beyond) and
// filled with NaN.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __restrict__

struct Dim {
  unsigned x = 1;
};
static Dim gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

constexpr int kLanes = 32;
constexpr size_t kStack = 128 << 10;

struct Fiber {
  ucontext_t context;  // to start it; jumps between fibers that run are much cheaper
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  bool started = false, done = false;
};

// One meeting of a warp's lanes: everybody leaves a value, then everybody reads.
struct Meeting {
  uint64_t values[kLanes];
  int arrived = 0;
  uint64_t generation = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> meetings;  // one per warp
  std::vector<uint64_t> results;  // per thread: what the last meeting left
  ucontext_t scheduler_context;
  jmp_buf scheduler;
  std::function<void()> body;
  unsigned running = 0;
};

static Block block;
static unsigned char* shared_memory = nullptr;
static std::mt19937 random_order;

inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what);
  std::abort();
}

inline void fiber_main() {
  block.body();
  block.fibers[block.running].done = true;
  _longjmp(block.scheduler, 1);
}

inline void wait() {
  if (!_setjmp(block.fibers[block.running].place)) _longjmp(block.scheduler, 1);
}

inline void resume(Fiber& fiber) {
  if (_setjmp(block.scheduler)) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  swapcontext(&block.scheduler_context, &fiber.context);
}

// Leaves `value` for the other lanes and returns all of theirs. Every lane of the warp must come.
inline void meet(unsigned mask, uint64_t value, uint64_t* all) {
  if (mask != 0xffffffffu) fail("a warp function without all lanes");
  static std::vector<std::vector<uint64_t>> previous;
  const unsigned self = block.running, warp = self / kLanes;
  if (previous.size() < block.meetings.size()) previous.resize(block.meetings.size());
  Meeting& meeting = block.meetings[warp];
  const uint64_t generation = meeting.generation;
  meeting.values[self % kLanes] = value;
  if (++meeting.arrived == kLanes) {
    meeting.arrived = 0;
    ++meeting.generation;
    previous[warp].assign(meeting.values, meeting.values + kLanes);
  } else {
    while (meeting.generation == generation) wait();
  }
  // Nobody can finish the next meeting before this lane comes to it, so `previous` still holds.
  std::copy(previous[warp].begin(), previous[warp].end(), all);
  wait();  // another lane may go first
}

template <typename... Parameters, typename... Arguments>
void run(
    unsigned seed, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
    Arguments... arguments) {
  if (blocks < 1 || threads < 1 || threads % kLanes || threads > 1024) fail("a bad launch");
  if (shared_bytes > (48 << 10)) fail("more shared memory than there is without asking");
  random_order.seed(seed);
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random_order);
  block.fibers.resize(threads);
  block.body = [&] { kernel(arguments...); };
  gridDim.x = static_cast<unsigned>(blocks);
  blockDim.x = static_cast<unsigned>(threads);
  std::vector<unsigned> turn(threads);
  std::iota(turn.begin(), turn.end(), 0u);
  for (unsigned index : order) {
    blockIdx.x = index;
    // new, not a vector: the allocation ends where the shared memory does
    shared_memory = static_cast<unsigned char*>(std::aligned_alloc(16, shared_bytes));
    std::memset(shared_memory, 0xff, shared_bytes);
    block.meetings.assign(threads / kLanes, Meeting());
    for (int t = 0; t < threads; ++t) {
      Fiber& fiber = block.fibers[t];
      if (!fiber.stack) fiber.stack.reset(new char[kStack]);
      fiber.started = fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, fiber_main, 0);
    }
    for (int left = threads, rounds = 0; left > 0; ++rounds) {
      if (rounds > 10000000) fail("the threads of a block wait for each other for ever");
      std::shuffle(turn.begin(), turn.end(), random_order);
      for (unsigned t : turn) {
        if (block.fibers[t].done) continue;
        block.running = t;
        threadIdx.x = t;
        resume(block.fibers[t]);
        if (block.fibers[t].done) --left;
      }
    }
    std::free(shared_memory);
  }
}

template <typename T>
uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulation

inline void __syncwarp() {
  uint64_t all[emulation::kLanes];
  emulation::meet(0xffffffffu, 0, all);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  uint64_t all[emulation::kLanes];
  emulation::meet(mask, emulation::to_bits(value), all);
  return emulation::from_bits<T>(all[lane % emulation::kLanes]);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  const int self = static_cast<int>(emulation::block.running) % emulation::kLanes;
  return __shfl_sync(mask, value, self ^ lanes);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  uint64_t all[emulation::kLanes];
  emulation::meet(mask, vote, all);
  unsigned votes = 0;
  for (int lane = 0; lane < emulation::kLanes; ++lane) votes |= all[lane] ? 1u << lane : 0u;
  return votes;
}
inline bool __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) == mask; }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }

template <typename T>
void atomicAdd(T* address, T value) {
  *address += value;
}

#define DCNV3_CHECK_ALIGNMENT(address, bytes)                            \
  do {                                                                   \
    if (reinterpret_cast<uintptr_t>(address) % (bytes)) {                \
      emulation::fail("an address that a GPU would refuse as misaligned"); \
    }                                                                    \
  } while (false)
#define DCNV3_SHARED(name) unsigned char* const name = emulation::shared_memory
