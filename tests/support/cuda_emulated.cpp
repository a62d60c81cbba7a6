// Runs the launchers of csrc/cuda without torch: on the CPU (TF_EMULATE, emulate.h) for test_cuda_emulated.py, or on a
// GPU, compiled by nvcc, for bench/gpu/harness.py, alone or under compute-sanitizer.
//
// A request on stdin is the launcher's name, the dtype and its arguments in the order of the argument struct, as tokens:
// "i 5" and "f 0.5" are numbers, "n" is a null pointer, "p 64" a pointer to 64 bytes that follow the line, "z 64" a
// pointer to 64 zeros, of which only those that are read take memory. The answer on stdout is the length of the error
// text, the number of launches (0 on a GPU), the text, and the bytes behind every "p". Each of these buffers is a separate
// allocation of exactly the given length, so that a sanitizer sees every access outside of it. Arguments, on the CPU:
// "backwards" runs blocks and threads in the opposite order, "forgetful" fills a launcher's rows with NaN after its first
// launch.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/cuda/branch.cu"
#include "../../csrc/cuda/log_prob.cu"
#include "../../csrc/cuda/move.cu"
#include "../../csrc/cuda/policy_loss.cu"

using namespace tempflow;
using namespace tempflow::cuda;

namespace {

#if defined(TF_EMULATE)
char* allocate(size_t size) { return new char[size]; }
void release(char* data) { delete[] data; }
void copy(char* to, const char* from, size_t size) { std::memcpy(to, from, size); }
const char* finish(const char* error) { return error; }
int num_launches() { return emulation::num_launches(); }
#else
void require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::abort();
}
char* allocate(size_t size) {
  void* data = nullptr;
  require(cudaMalloc(&data, size > 0 ? size : 1));
  return static_cast<char*>(data);
}
void release(char* data) { require(cudaFree(data)); }
void copy(char* to, const char* from, size_t size) { require(cudaMemcpy(to, from, size, cudaMemcpyDefault)); }
const char* finish(const char* error) {
  const cudaError_t late = cudaDeviceSynchronize();
  return error || late == cudaSuccess ? error : cudaGetErrorString(late);
}
int num_launches() { return 0; }
#endif

// Never null, which fread and fwrite do not take.
std::vector<char> host_buffer(size_t size) { return std::vector<char>(std::max<size_t>(size, 1)); }

struct Release {
  void operator()(char* data) const { release(data); }
};

struct Request {
  std::string name;
  int dtype = 0;
  std::vector<std::string> tokens;
  std::vector<std::unique_ptr<char, Release>> buffers;
  std::vector<size_t> sizes, rows_at;      // rows_at: buffers that hold rows
  size_t next_token = 0, next_buffer = 0;

  bool read() {
    char line[4096], word[64];
    if (!std::fgets(line, sizeof(line), stdin)) return false;
    int used = 0, step = 0;
    if (std::sscanf(line, "%63s %d%n", word, &dtype, &used) != 2) std::abort();
    name = word;
    for (; std::sscanf(line + used, "%63s%n", word, &step) == 1; used += step) tokens.emplace_back(word);
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] != "p") continue;
      sizes.push_back(std::stoull(tokens[i + 1]));
      std::vector<char> bytes = host_buffer(sizes.back());
      if (std::fread(bytes.data(), 1, sizes.back(), stdin) != sizes.back()) std::abort();
      buffers.emplace_back(allocate(sizes.back()));
      copy(buffers.back().get(), bytes.data(), sizes.back());
    }
    return true;
  }

  void answer(const char* error) const {
    std::printf("%zu %d\n%s", error ? std::strlen(error) : 0, num_launches(), error ? error : "");
    for (size_t i = 0; i < buffers.size(); ++i) {
      std::vector<char> bytes = host_buffer(sizes[i]);
      copy(bytes.data(), buffers[i].get(), sizes[i]);
      std::fwrite(bytes.data(), 1, sizes[i], stdout);
    }
    std::fflush(stdout);
  }

  bool take(const char* kind) {
    if (tokens.at(next_token) != kind) return false;
    ++next_token;
    return true;
  }
  std::string value(const char* kind) {
    if (!take(kind)) std::abort();
    return tokens.at(next_token++);
  }
  int64_t integer() { return std::stoll(value("i")); }
  double number() { return std::stod(value("f")); }
  template <class T = void>
  T* pointer() {
    if (take("n")) return nullptr;
    if (tokens.at(next_token) == "z") return static_cast<T*>(zeros(std::stoull(value("z"))));
    value("p");
    return reinterpret_cast<T*>(buffers.at(next_buffer++).get());
  }

#if defined(TF_EMULATE)
  void forget_rows() const {
    for (size_t i : rows_at) std::memset(buffers[i].get(), 0xff, sizes[i]);
  }
#endif

  static void* zeros(size_t size) {
    void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) std::abort();
    return data;
  }

  const void* first_element() {
    const size_t buffer = next_buffer;
    const char* data = pointer<const char>();
    if (next_buffer > buffer) rows_at.push_back(buffer);
    const int64_t offset = integer();
    return data ? data + offset * size_of(static_cast<Dtype>(dtype)) : nullptr;
  }
  Rows rows() {
    const void* data = first_element();
    return {data, integer()};
  }
  Guided guided() {
    const Rows cond = rows(), uncond = rows();
    return {cond, uncond, static_cast<float>(number())};
  }
  StepOfRow step_of_row() {
    const double* coefficients = pointer<const double>();
    const int64_t num_steps = integer();
    return {coefficients, num_steps, pointer<const int64_t>()};
  }
  Noise noise() {
    const int64_t* seed = pointer<const int64_t>();
    return {seed, pointer<const int64_t>()};
  }
};

// Elements in braces are evaluated in order, so each line reads the tokens in their order.
const char* run(Request& r) {
  const Dtype dtype = static_cast<Dtype>(r.dtype);
  if (r.name == "guided_velocity")
    return guided_velocity(dtype, GuideArgs{r.guided(), r.pointer(), r.integer(), r.integer()}, nullptr);
  if (r.name == "euler_step")
    return euler_step(dtype, EulerArgs{r.rows(), r.guided(), r.pointer<double>(), r.pointer(), r.integer(), r.integer()},
                      nullptr);
  if (r.name == "branch_step")
    return branch_step(dtype, BranchArgs{r.rows(), r.guided(), r.pointer<double>(), static_cast<uint32_t>(r.integer()),
                                         r.noise(), r.pointer(), r.pointer(), r.pointer<float>(), r.pointer<float>(),
                                         r.integer(), r.integer(), r.integer()}, nullptr);
  if (r.name == "initial_noise")
    return initial_noise(NoiseArgs{r.noise(), r.pointer<float>(), r.integer(), r.integer()}, nullptr);
  if (r.name == "log_prob" || r.name == "log_prob_backward") {
    const LogProbArgs args{r.rows(), r.rows(), r.rows(), r.step_of_row(), r.pointer<float>(), r.pointer<float>(),
                           r.pointer<float>(), r.pointer(), r.integer(), r.integer()};
    return r.name == "log_prob" ? log_prob(dtype, args, nullptr) : log_prob_backward(dtype, args, nullptr);
  }
  if (r.name == "policy_loss")
    return policy_loss(dtype, LossArgs{r.guided(), r.rows(), r.rows(), r.rows(), r.first_element(), r.integer(),
                                       r.integer(), r.pointer<float>(), r.step_of_row(), Clip(r.number()), r.number(),
                                       r.pointer<float>(), r.pointer<RowStatistics>(), r.pointer<uint32_t>(),
                                       r.pointer<float>(), r.pointer<float>(), r.pointer<float>(), r.pointer<float>(),
                                       r.pointer<float>(), r.integer(), r.integer(), r.integer()}, nullptr);
  return "no such launcher";
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> options(arguments + 1, arguments + count);
#if defined(TF_EMULATE)
  const auto chosen = [&](const char* name) { return std::find(options.begin(), options.end(), name) != options.end(); };
  emulation::backwards() = chosen("backwards");
#endif
  for (;;) {
    Request request;
    if (!request.read()) return 0;
#if defined(TF_EMULATE)
    emulation::num_launches() = 0;
    if (chosen("forgetful"))
      emulation::before_launch() = [&](int before) { if (before == 1) request.forget_rows(); };
#endif
    request.answer(finish(run(request)));
  }
}
