#include "experiments/options/outputs.hpp"

#include <utility>

namespace moescope {

namespace fs = std::filesystem;

std::vector<fs::path> workload_files(const std::vector<NamedWorkload>& workloads) {
  std::vector<fs::path> files;
  for (const NamedWorkload& workload : workloads) {
    if (!workload.spec.path.empty()) {
      files.emplace_back(workload.spec.path);
    }
  }
  return files;
}

std::vector<fs::path> simulator_files(const SimulatorOptions& options) {
  std::vector<fs::path> files;
  for (const std::string& name : options.devices) {
    if (auto file = device_file(name)) {
      files.push_back(*std::move(file));
    }
  }
  if (!options.calibration.empty() && options.calibration != "none") {
    files.emplace_back(options.calibration);
  }
  return files;
}

std::unique_ptr<ResultWriter> open_rows(const std::string& output, RunHeader header) {
  return output.empty() ? nullptr : std::make_unique<ResultWriter>(output, std::move(header));
}

ResultWriter open_results(const std::string& output, RunHeader header, std::vector<std::string> also) {
  OutputFolder folder =
      output.empty() ? OutputFolder::numbered("results", header.run_id) : OutputFolder(output);
  if (output.empty()) {
    header.run_id = folder.path().filename();
  }
  return {std::move(folder), std::move(header), ExistingRun::kRefuse, std::move(also)};
}

void claim_files(const fs::path& folder, const std::vector<std::string>& names,
                 const std::vector<fs::path>& kept) {
  for (const std::string& name : names) {
    OutputFile("output", folder / name, kept);
  }
}

}  // namespace moescope
