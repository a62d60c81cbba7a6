// Bodies of the ops on tensors, written against LibTorch's stable ABI: one binary serves every torch >= the target.
// The public functions in tempflow_fast/ops/ check the arguments before they call an op.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>

namespace tempflow {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using SampleResult = std::tuple<Tensor, Tensor, Tensor>;                     // latents_next, branches, log_prob
using LossResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;       // loss, log_ratio, clip_fraction, kl, gradient

namespace cpu {
#include "signatures.inc"
}
namespace cuda {
#include "signatures.inc"
}

}  // namespace tempflow
