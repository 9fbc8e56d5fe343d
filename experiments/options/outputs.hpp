#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/files/output_file.hpp"
#include "core/results/result.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/sim_options.hpp"

/// What a command writes, claimed after its options are understood and before any work: a refusal leaves
/// nothing behind, and nothing that the command reads is lost.
namespace moescope {

/// Files of the workloads that have any.
std::vector<std::filesystem::path> workload_files(const std::vector<NamedWorkload>& workloads);
/// Files of the devices and the calibration that the options name.
std::vector<std::filesystem::path> simulator_files(const SimulatorOptions& options);

/// The writer of --output; null without. Throws FileError.
std::unique_ptr<ResultWriter> open_rows(const std::string& output, RunHeader header);
/// The writer of a command that always writes: to --output, else to results/<run id>, a folder of its own
/// however many runs start at once. `also`: see ResultWriter. Throws FileError.
ResultWriter open_results(const std::string& output, RunHeader header, std::vector<std::string> also = {});
/// Throws what OutputFile does when one of `names` in a folder cannot be written.
void claim_files(const std::filesystem::path& folder, const std::vector<std::string>& names,
                 const std::vector<std::filesystem::path>& kept);

}  // namespace moescope
