#include "experiments/backends.hpp"

#include "core/error.hpp"
#include "reference/reference_backend.hpp"

#ifdef MOESCOPE_HAVE_CUDA
#include "kernels/cuda_backend.hpp"
#endif

namespace moescope {

std::unique_ptr<MoeBackend> make_backend(const std::string& name) {
  if (name == "cpu") {
    return std::make_unique<ReferenceBackend>();
  }
  if (name != "cuda") {
    throw InvalidArgument("backend", name, "must be cpu or cuda");
  }
#ifdef MOESCOPE_HAVE_CUDA
  return make_cuda_backend();
#else
  throw NoDevice("this build has no CUDA backend; configure with -DMOESCOPE_CUDA=ON and nvcc");
#endif
}

}  // namespace moescope
