#pragma once

#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "experiments/options/options.hpp"
#include "profiler/placement/placement_study.hpp"

namespace moescope {

/// Every layer of a file of routing: a trace, or a format that `moescope import` recognises. Widths are what
/// the file or the options say, and 0 where neither does. Throws FileError, InvalidArgument.
std::vector<RoutedBatch> batches_of_file(const std::string& path, const CommonOptions& options);

/// Routing of every workload asked for, on the CPU, without weights of experts where they play no part. A
/// trace needs no hidden size. Throws InvalidArgument, FileError, OutOfMemory.
std::vector<RoutedBatch> batches_of_workloads(MoeBackend& backend, const CommonOptions& options);

}  // namespace moescope
