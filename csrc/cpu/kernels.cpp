// Compiled once per instruction set with -DTF_ISA=<name>: plain loops, vectorised by the compiler.
//
// Everything but the list of kernels has internal linkage, and no standard-library template is used: either could put
// wide instructions into symbols that the linker shares with the narrow build.
#include "loss.h"

#define TF_JOIN_(a, b) a##b
#define TF_JOIN(a, b) TF_JOIN_(a, b)
#define TF_TEXT_(a) #a
#define TF_TEXT(a) TF_TEXT_(a)
#define TF_ALL_DTYPES(kernel) {kernel<float>, kernel<bf16>, kernel<fp16>}

namespace tempflow::cpu {

extern const Kernels TF_JOIN(kernels_, TF_ISA);
const Kernels TF_JOIN(kernels_, TF_ISA) = {
    TF_TEXT(TF_ISA),
    TF_ALL_DTYPES(sample),
    initial_noise,
    TF_ALL_DTYPES(guided_velocity),
    TF_ALL_DTYPES(log_prob),
    TF_ALL_DTYPES(log_prob_backward),
    TF_ALL_DTYPES(loss_products),
    TF_ALL_DTYPES(loss_gradient),
    TF_ALL_DTYPES(loss_at_once),
};

}  // namespace tempflow::cpu
