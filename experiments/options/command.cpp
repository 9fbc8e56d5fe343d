#include "experiments/options/command.hpp"

#include <fmt/format.h>

#include <Eigen/Core>

#ifdef MOESCOPE_HAVE_CUDA
#include "kernels/runtime/device_info.hpp"
#endif

namespace moescope {

RunHeader run_header(const Invocation& invocation, const MoeBackend& backend) {
  RunHeader header = make_run_header(invocation.argc, invocation.argv);
  header.device = backend.device();
  header.libraries["Eigen"] =
      fmt::format("{}.{}.{}", EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION);
  header.libraries["CLI11"] = cli_library_version();
#ifdef MOESCOPE_HAVE_CUDA
  if (backend.name() == "cuda") {
    const cuda::DeviceInfo info = cuda::device_info();
    header.driver = info.driver;
    header.libraries["cuda_driver"] = info.cuda_driver;
    header.libraries["cuda_runtime"] = info.cuda_runtime;
    header.libraries["cublasLt"] = info.cublas_lt;
    header.libraries["cuSPARSE"] = info.cusparse;
    header.machine["compute_capability"] = static_cast<double>(info.compute_capability);
    header.machine["num_sms"] = static_cast<double>(info.num_sms);
    header.machine["l2_bytes"] = static_cast<double>(info.l2_bytes);
    header.machine["shared_bytes_per_block"] = static_cast<double>(info.shared_bytes_per_block);
    header.machine["device_memory_bytes"] = static_cast<double>(info.memory_bytes);
  }
#endif
  return header;
}

std::string examples(std::initializer_list<const char*> lines) {
  std::string text = lines.size() == 1 ? "Example:" : "Examples:";
  for (const char* line : lines) {
    text += fmt::format("\n  {}", line);
  }
  return text;
}

}  // namespace moescope
