// See ../../csrc/stable/tensor.h.
#pragma once
#include <cstddef>

namespace torch::headeronly {
enum class ScalarType { Float, BFloat16, Half, Double, Long, Int };
inline size_t size_of(ScalarType type) {
  return type == ScalarType::Double || type == ScalarType::Long ? 8 : type == ScalarType::Float || type == ScalarType::Int ? 4 : 2;
}
}  // namespace torch::headeronly
