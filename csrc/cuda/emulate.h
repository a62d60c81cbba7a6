// Runs kernel source on the CPU, for tests: one fiber per thread of a block, blocks one after another.
//
// Barriers and shuffles really wait, and a warp runs as far ahead of the others as they allow. So wrong indices, tails
// and reductions show, and so do missing barriers (some of them only when blocks and threads run in the opposite order).
// Errors of memory order do not show.
#pragma once
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static            // one block at a time

namespace tempflow::cuda::emulation {

constexpr size_t kStackBytes = 64 * 1024;   // of a fiber: a kernel keeps little more than its registers there

struct Index { unsigned x; };

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Wait {                            // of a thread for a barrier to open
  const Barrier* barrier = nullptr;
  int generation = 0;
};

struct Block {
  std::vector<ucontext_t> fibers;
  std::vector<std::unique_ptr<char[]>> stacks;  // a vector would fill them with zeros
  std::vector<char> done;
  std::vector<double> exchanged[2];
  std::vector<Barrier> warps;
  Barrier all;
  std::vector<Wait> waits;
  ucontext_t scheduler;
  int current = 0;
  Index block{};
  void (*entry)(void*) = nullptr;
  void* context = nullptr;

  explicit Block(int threads)
      : fibers(threads), stacks(threads), done(threads),
        exchanged{std::vector<double>(threads), std::vector<double>(threads)},
        warps((threads + kWarpSize - 1) / kWarpSize), waits(threads) {
    for (auto& stack : stacks) stack.reset(new char[kStackBytes]);
  }

  void pause() { swapcontext(&fibers[current], &scheduler); }

  void wait(Barrier& barrier, int parties) {
    if (++barrier.arrived == parties) {
      barrier.arrived = 0;
      ++barrier.generation;
    } else {
      waits[current] = {&barrier, barrier.generation};
      pause();
    }
  }

  // The value that another lane of the caller's (full) warp passes in. Two sets of values take turns: a lane can reach
  // the next exchange before another lane has read this one's values, but not the one after that.
  double exchange(double value, int lane) {
    Barrier& warp = warps[current / kWarpSize];
    double* values = exchanged[warp.generation % 2].data() + current / kWarpSize * kWarpSize;
    values[current % kWarpSize] = value;
    wait(warp, kWarpSize);
    return values[lane];
  }

  bool can_run(int t) const {
    return !done[t] && !(waits[t].barrier && waits[t].barrier->generation == waits[t].generation);
  }

  static void run_fiber();
  int run_warp(int warp);
  void run();
};

inline Block*& active() {
  static thread_local Block* block = nullptr;
  return block;
}

// Whether blocks and threads run from the last to the first: a result that depends on this order has a race.
inline bool& backwards() {
  static bool value = false;
  return value;
}

inline int& num_launches() {
  static int value = 0;
  return value;
}

// Called before each launch with the number of earlier launches.
inline std::function<void(int)>& before_launch() {
  static std::function<void(int)> hook;
  return hook;
}

inline void Block::run_fiber() {
  Block& block = *active();
  block.entry(block.context);
  block.done[block.current] = 1;
  block.pause();
}

// Runs a warp until all its threads are done or wait for other warps; returns how often one of them ran.
inline int Block::run_warp(int warp) {
  const int threads = static_cast<int>(fibers.size()), first = warp * kWarpSize;
  const int size = threads - first < kWarpSize ? threads - first : kWarpSize;
  int turns = 0;
  for (int before = -1; before != turns;) {
    before = turns;
    for (int lane = 0; lane < size; ++lane) {
      current = first + (backwards() ? size - 1 - lane : lane);
      if (!can_run(current)) continue;
      swapcontext(&scheduler, &fibers[current]);
      ++turns;
    }
  }
  return turns;
}

inline void Block::run() {
  const int threads = static_cast<int>(fibers.size()), num_warps = static_cast<int>(warps.size());
  for (int t = 0; t < threads; ++t) {
    getcontext(&fibers[t]);
    fibers[t].uc_stack.ss_sp = stacks[t].get();
    fibers[t].uc_stack.ss_size = kStackBytes;
    fibers[t].uc_link = nullptr;
    makecontext(&fibers[t], &Block::run_fiber, 0);
    done[t] = 0;
    waits[t] = {};
  }
  for (int turns = 1; turns > 0;) {
    turns = 0;
    for (int w = 0; w < num_warps; ++w) turns += run_warp(backwards() ? num_warps - 1 - w : w);
  }
  for (int t = 0; t < threads; ++t)
    if (!done[t]) {
      std::fputs("threads wait at a barrier that others never reach\n", stderr);
      std::abort();
    }
}

// Calls `kernel` as every thread of every block.
template <class Kernel>
void run_blocks(int64_t blocks, int threads, Kernel kernel) {
  if (before_launch()) before_launch()(num_launches());
  ++num_launches();
  Block block(threads);
  block.entry = [](void* context) { (*static_cast<Kernel*>(context))(); };
  block.context = &kernel;
  active() = &block;
  for (int64_t b = 0; b < blocks; ++b) {
    block.block.x = static_cast<unsigned>(backwards() ? blocks - 1 - b : b);
    block.run();
  }
  active() = nullptr;
}

}  // namespace tempflow::cuda::emulation

#define threadIdx \
  (::tempflow::cuda::emulation::Index{static_cast<unsigned>(::tempflow::cuda::emulation::active()->current)})
#define blockIdx (::tempflow::cuda::emulation::active()->block)

inline void __syncthreads() {
  auto& block = *tempflow::cuda::emulation::active();
  block.wait(block.all, static_cast<int>(block.fibers.size()));
}

template <class V>
V __shfl_xor_sync(unsigned, V value, int mask) {
  auto& block = *tempflow::cuda::emulation::active();
  return static_cast<V>(block.exchange(static_cast<double>(value), (block.current % tempflow::cuda::kWarpSize) ^ mask));
}

inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* at, unsigned value) { return std::exchange(*at, *at + value); }
