// Binds the compiled bodies to the schemas of tempflow_fast/ops/ when the library is loaded. Plain C functions answer
// what Python asks about the build, so compiling needs no Python header.
#include "cpu/kernels.h"
#include "ops.h"

#define TF_BODIES_OF(device)                                                      \
  m.impl("guided_velocity", TORCH_BOX(&tempflow::device::guided_velocity));       \
  m.impl("euler_step", TORCH_BOX(&tempflow::device::euler_step));                 \
  m.impl("branch_step", TORCH_BOX(&tempflow::device::branch_step));               \
  m.impl("initial_noise", TORCH_BOX(&tempflow::device::initial_noise));           \
  m.impl("log_prob", TORCH_BOX(&tempflow::device::log_prob));                     \
  m.impl("log_prob_backward", TORCH_BOX(&tempflow::device::log_prob_backward));   \
  m.impl("policy_loss", TORCH_BOX(&tempflow::device::policy_loss))

STABLE_TORCH_LIBRARY_IMPL(tempflow_fast, CPU, m) { TF_BODIES_OF(cpu); }
#ifdef TF_CUDA
STABLE_TORCH_LIBRARY_IMPL(tempflow_fast, CUDA, m) { TF_BODIES_OF(cuda); }
#endif

#define TF_EXPORT extern "C" __attribute__((visibility("default")))

// JSON.
TF_EXPORT const char* tempflow_build_info() {
  return "{\"compiler\": \"" TF_COMPILER "\", \"torch\": \"" TF_TORCH_BUILD "\", \"torch_target\": \"" TF_TORCH_TARGET
         "\", \"cuda\": \"" TF_CUDA_VERSION "\", \"cuda_arch\": \"" TF_CUDA_ARCHS "\"}";
}

TF_EXPORT const char* tempflow_cpu_isa() { return tempflow::cpu::kernels().isa; }

TF_EXPORT bool tempflow_force_cpu_isa(const char* name) { return tempflow::cpu::force_isa(name); }
