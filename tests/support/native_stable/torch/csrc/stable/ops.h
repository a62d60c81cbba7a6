// See tensor.h. Every task may get a thread of its own, however little work it is.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <thread>

namespace torch::stable {

inline int& num_threads() {
  static int value = 1;
  return value;
}

inline Tensor new_empty(const Tensor& like, std::vector<int64_t> sizes,
                        std::optional<headeronly::ScalarType> type = std::nullopt) {
  return contiguous(std::move(sizes), type.value_or(like.scalar_type()));
}

template <class Task>
void parallel_for(int64_t first, int64_t last, int64_t, const Task& task) {
  const int64_t share = (last - first + num_threads() - 1) / num_threads();
  std::vector<std::thread> threads;
  for (int64_t begin = first; begin < last; begin += std::max<int64_t>(share, 1))
    threads.emplace_back([&task, begin, end = std::min(begin + share, last)] { task(begin, end); });
  for (auto& thread : threads) thread.join();
}

}  // namespace torch::stable
