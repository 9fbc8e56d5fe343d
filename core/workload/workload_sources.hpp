#pragma once

#include <cstdint>
#include <memory>

#include "core/workload/workload.hpp"

/// The families behind make_workload(); not for use outside core/.
namespace moescope::detail {

/// kGaussian, kZipf, kHot, kClustered, kDrift, kUniform (workload_synthetic.cpp).
LayerInputs make_synthetic(const WorkloadSpec& spec, const LayerShape& shape, std::uint64_t seed,
                           std::shared_ptr<const ExpertWeights> experts);

/// kSnapshot and kTrace (workload_files.cpp). Zeros in `shape` are completed from the file by both.
LayerShape complete_file_shape(const WorkloadSpec& spec, const LayerShape& requested);
LayerInputs make_from_file(const WorkloadSpec& spec, const LayerShape& shape, std::uint64_t seed,
                           std::shared_ptr<const ExpertWeights> experts);

}  // namespace moescope::detail
