#include "experiments/options/backends.hpp"

#include <algorithm>
#include <string_view>

#include "core/base/error.hpp"
#include "core/ranks/rank_launch.hpp"
#include "reference/backend/cpu_ceilings.hpp"
#include "reference/backend/reference_backend.hpp"

#ifdef MOESCOPE_HAVE_CUDA
#include "kernels/cuda_backend.hpp"
#include "kernels/probes/ceilings.hpp"
#endif

namespace moescope {
namespace {

/// What `cpu` or `cuda` makes, as `name` asks for. Both return the same type.
template <class Cpu, class Cuda>
auto choose(const std::string& name, const Cpu& cpu, const Cuda& cuda) {
  if (name == "cpu") {
    return cpu();
  }
  if (name != "cuda") {
    throw InvalidArgument("backend", name, "must be cpu or cuda");
  }
  return cuda();
}

#ifndef MOESCOPE_HAVE_CUDA
[[noreturn]] void throw_no_cuda() {
  throw NoDevice("this build has no CUDA backend; configure with -DMOESCOPE_CUDA=ON and nvcc");
}
#endif

}  // namespace

std::unique_ptr<MoeBackend> make_backend(const std::string& name) {
  return choose(
      name, []() -> std::unique_ptr<MoeBackend> { return std::make_unique<ReferenceBackend>(); },
      []() -> std::unique_ptr<MoeBackend> {
#ifdef MOESCOPE_HAVE_CUDA
        return make_cuda_backend();
#else
        throw_no_cuda();
#endif
      });
}

std::optional<ExitCode> serve_as_rank(int argc, const char* const* argv) {
  const auto names_ranks = [](std::string_view argument) {
    return argument == "--ranks" || argument.starts_with("--ranks=");
  };
  if (std::none_of(argv + 1, argv + argc, names_ranks)) {
    return std::nullopt;
  }
  const auto environment = rank_environment();
  if (!environment || environment->rank == 0) {
    return std::nullopt;
  }
#ifdef MOESCOPE_HAVE_CUDA
  return serve_cuda_rank(*environment);
#else
  throw_no_cuda();
#endif
}

CeilingProbes make_ceiling_probes(const std::string& backend) {
  return choose(backend, make_cpu_ceiling_probes, []() -> CeilingProbes {
#ifdef MOESCOPE_HAVE_CUDA
    return make_cuda_ceiling_probes();
#else
    throw_no_cuda();
#endif
  });
}

}  // namespace moescope
