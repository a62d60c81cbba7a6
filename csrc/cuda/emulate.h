// Runs kernel source on the CPU, for tests: one fiber per thread of a block, blocks one after another.
//
// Barriers and shuffles are real meeting points, so wrong indices, tails, reductions and missing barriers show; races
// inside a warp, alignment and memory order do not.
#pragma once
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace tempflow::cuda::emulation {

struct Index { unsigned x; };

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Block {
  std::vector<ucontext_t> fibers;
  std::vector<std::vector<char>> stacks;
  std::vector<char> done;
  std::vector<float> exchanged, shared;
  std::vector<Barrier> warps;
  Barrier all;
  ucontext_t scheduler;
  int current = 0;
  Index block{};
  void (*entry)(void*) = nullptr;
  void* context = nullptr;

  explicit Block(int threads, size_t shared_bytes)
      : fibers(threads), stacks(threads, std::vector<char>(64 * 1024)), done(threads), exchanged(threads),
        shared(shared_bytes / sizeof(float) + 1), warps((threads + 31) / 32) {}

  void pause() { swapcontext(&fibers[current], &scheduler); }

  void wait(Barrier& barrier, int parties) {
    const int generation = barrier.generation;
    if (++barrier.arrived == parties) {
      barrier.arrived = 0;
      ++barrier.generation;
    }
    while (barrier.generation == generation) pause();
  }

  // The value that another lane of the caller's (full) warp passed in.
  float exchange(float value, int lane) {
    const int warp = current / 32;
    exchanged[current] = value;
    wait(warps[warp], 32);
    const float result = exchanged[warp * 32 + lane];
    wait(warps[warp], 32);
    return result;
  }

  static void run_fiber();
  void run();
};

inline Block*& active() {
  static thread_local Block* block = nullptr;
  return block;
}

inline void Block::run_fiber() {
  Block& block = *active();
  block.entry(block.context);
  block.done[block.current] = 1;
  block.pause();
}

inline void Block::run() {
  const int threads = static_cast<int>(fibers.size());
  for (int t = 0; t < threads; ++t) {
    getcontext(&fibers[t]);
    fibers[t].uc_stack.ss_sp = stacks[t].data();
    fibers[t].uc_stack.ss_size = stacks[t].size();
    fibers[t].uc_link = nullptr;
    makecontext(&fibers[t], &Block::run_fiber, 0);
    done[t] = 0;
  }
  for (int left = threads; left > 0;)
    for (int t = 0; t < threads; ++t) {
      if (done[t]) continue;
      current = t;
      swapcontext(&scheduler, &fibers[t]);
      left -= done[t];
    }
}

}  // namespace tempflow::cuda::emulation

#define threadIdx (::tempflow::cuda::emulation::Index{static_cast<unsigned>(::tempflow::cuda::emulation::active()->current)})
#define blockIdx (::tempflow::cuda::emulation::active()->block)

inline void __syncthreads() {
  auto& block = *tempflow::cuda::emulation::active();
  block.wait(block.all, static_cast<int>(block.fibers.size()));
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  auto& block = *tempflow::cuda::emulation::active();
  return block.exchange(value, (block.current % 32) ^ mask);
}

namespace tempflow::cuda {

inline float* dynamic_shared() { return emulation::active()->shared.data(); }

template <class... P, class... A>
const char* launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared, void*, A... args) {
  auto call = [&] { kernel(args...); };
  emulation::Block block(threads, shared);
  block.entry = [](void* context) { (*static_cast<decltype(call)*>(context))(); };
  block.context = &call;
  emulation::active() = &block;
  for (int64_t b = 0; b < blocks; ++b) {
    block.block.x = static_cast<unsigned>(b);
    block.run();
  }
  emulation::active() = nullptr;
  return nullptr;
}

}  // namespace tempflow::cuda
