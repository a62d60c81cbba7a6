// As much of LibTorch's stable ABI as csrc/cpu uses, without torch, for native_sanitized.cpp: torch itself is not built
// with sanitizers, and its threads would look like races. Memory is of the exact size of a tensor, so that the address
// sanitizer sees every access outside of it.
#pragma once
#include <torch/headeronly/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#define STD_TORCH_CHECK(condition, ...) \
  do { if (!(condition)) torch::stable::refuse(__VA_ARGS__); } while (0)

namespace torch::stable {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

class Tensor {
 public:
  Tensor(std::vector<int64_t> sizes, std::vector<int64_t> strides, headeronly::ScalarType type)
      : sizes_(std::move(sizes)), strides_(std::move(strides)), type_(type), memory_(new char[bytes()]) {}

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t d) const { return sizes_.at(static_cast<size_t>(d)); }
  int64_t stride(int64_t d) const { return strides_.at(static_cast<size_t>(d)); }
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t size : sizes_) count *= size;
    return count;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (size_t d = sizes_.size(); d-- > 0; expected *= sizes_[d])
      if (sizes_[d] != 1 && strides_[d] != expected) return numel() == 0;
    return true;
  }
  headeronly::ScalarType scalar_type() const { return type_; }
  bool is_cuda() const { return false; }
  int32_t get_device_index() const { return -1; }
  void* mutable_data_ptr() const { return memory_.get(); }
  const void* const_data_ptr() const { return memory_.get(); }
  template <class T> T* mutable_data_ptr() const { return reinterpret_cast<T*>(memory_.get()); }
  template <class T> const T* const_data_ptr() const { return reinterpret_cast<const T*>(memory_.get()); }

  size_t bytes() const {                             // from the first element to the last
    if (numel() == 0) return 0;
    int64_t last = 0;
    for (size_t d = 0; d < sizes_.size(); ++d) last += (sizes_[d] - 1) * strides_[d];
    return static_cast<size_t>(last + 1) * headeronly::size_of(type_);
  }

 private:
  std::vector<int64_t> sizes_, strides_;
  headeronly::ScalarType type_;
  std::shared_ptr<char[]> memory_;
};

inline Tensor contiguous(std::vector<int64_t> sizes, headeronly::ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= sizes[d]) strides[d] = stride;
  return Tensor(std::move(sizes), std::move(strides), type);
}

}  // namespace torch::stable
