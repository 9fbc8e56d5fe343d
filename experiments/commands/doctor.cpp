#include <fmt/format.h>
#include <omp.h>

#include <fstream>
#include <iostream>
#include <memory>

#include "core/base/build_info.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "profiler/limits/doctor.hpp"
#include "profiler/text/fitted_output.hpp"

#ifdef MOESCOPE_HAVE_CUDA
#include <cuda_runtime_api.h>

#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvml.hpp"
#endif

namespace moescope {
namespace {

struct DoctorOptions {
  std::string backend;
  bool json = false;
};

#ifdef MOESCOPE_HAVE_CUDA
constexpr const char* kDefaultBackend = "cuda";

void add_gpu(MachineFacts& facts) {
  if (const auto why = cuda::why_no_device(); why.has_value()) {
    facts.no_gpu = *why;
    return;
  }
  const cuda::DeviceInfo info = cuda::device_info();
  GpuFacts gpu;
  gpu.name = info.name;
  gpu.driver = info.driver;
  gpu.cuda_driver = info.cuda_driver;
  gpu.cuda_runtime = info.cuda_runtime;
  gpu.compute_capability = info.compute_capability;
  gpu.num_sms = info.num_sms;
  gpu.memory_bytes = info.memory_bytes;
  std::size_t free_bytes = 0;
  std::size_t all_bytes = 0;
  if (cudaMemGetInfo(&free_bytes, &all_bytes) == cudaSuccess) {
    gpu.free_bytes = static_cast<std::int64_t>(free_bytes);
  }
  gpu.clocks = cuda::Nvml(info.pci_bus_id).sample();
  facts.gpu = gpu;
}
#else
constexpr const char* kDefaultBackend = "cpu";

void add_gpu(MachineFacts& facts) {
  facts.no_gpu = "this build has no CUDA backend; configure with -DMOESCOPE_CUDA=ON and nvcc";
}
#endif

/// "RmProfilingAdminOnly: 1" among the parameters of NVIDIA's kernel module.
std::optional<bool> counters_admin_only() {
  std::ifstream stream("/proc/driver/nvidia/params");
  for (std::string name; stream >> name;) {
    if (int value = 0; name == "RmProfilingAdminOnly:" && stream >> value) {
      return value != 0;
    }
  }
  return std::nullopt;
}

MachineFacts gather() {
  const BuildInfo& build = build_info();
  MachineFacts facts;
  facts.version = build.version;
  facts.build_type = build.build_type;
  facts.sanitize = build.sanitize;
  facts.git_revision = build.git_revision;
  facts.git_dirty = build.git_dirty;
  facts.cpu = make_backend("cpu")->device();
  facts.cpu_threads = omp_get_max_threads();
  add_gpu(facts);
  facts.cupti = cupti_status();
  facts.counters_admin_only = counters_admin_only();
  return facts;
}

ExitCode doctor(const DoctorOptions& options) {
  if (options.backend != "cpu" && options.backend != "cuda") {
    throw InvalidArgument("backend", options.backend, "must be cpu or cuda");
  }
  const MachineFacts facts = gather();
  const auto findings = diagnose(facts);
  if (options.json) {
    const Verbatim whole(std::cout);
    std::cout << findings_json(findings);
  } else {
    std::cout << findings_text(findings);
  }
  return options.backend == "cuda" && !facts.gpu.has_value() ? ExitCode::kNoDevice : ExitCode::kOk;
}

}  // namespace

Command add_doctor(Cli app, const Invocation& /*invocation*/) {
  auto options = std::make_shared<DoctorOptions>();
  options->backend = kDefaultBackend;
  const Cli sub = app.add_subcommand(
      "doctor", "what this machine can measure: GPU, driver, counters, clocks, and what is missing");
  sub.add_option(
         "--backend", options->backend,
         fmt::format("exit code 0 when times of this backend can be measured here, else 5: cpu or cuda "
                     "(default {})",
                     kDefaultBackend))
      .type_name("NAME");
  sub.add_flag("--json", options->json, "print the findings as JSON");
  sub.footer(examples({"moescope doctor", "moescope doctor --backend cuda --json"}));
  return {sub, [options] { return doctor(*options); }};
}

}  // namespace moescope
