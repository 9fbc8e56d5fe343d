#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer/layer_inputs.hpp"

namespace moescope {

/// Where tokens and routing come from (DESIGN section 6). Parsed from "family:arg,arg"; prints back the same.
struct WorkloadSpec {
  enum class Family : std::uint8_t {
    kGaussian,
    kZipf,
    kHot,
    kClustered,
    kDrift,
    kUniform,
    kSnapshot,
    kTrace
  };
  Family family = Family::kGaussian;
  std::vector<double> parameters;  ///< numeric arguments, defaults filled in
  std::string path;                ///< kSnapshot, kTrace
  std::string text;                ///< canonical spelling, as in rows

  /// Throws InvalidArgument("workload", text, requirement) with the family's grammar.
  static WorkloadSpec parse(std::string_view text);
};

/// One help line per family, with grammar, meaning and defaults; for --help and README.
std::string workload_help();

/// W, V ~ N(0, 1/d) and, if shape.shared_size > 0, a shared MLP of the same scale, rounded to shape.dtype.
/// Bit-identical on every machine for one (shape, seed), whatever the number of threads.
std::shared_ptr<const ExpertWeights> make_expert_weights(const LayerShape& shape, std::uint64_t seed);

/// Inputs of a workload. For synthetic families `shape` says everything; for a snapshot d, grid and (unless
/// `shape` asks for another) K, L come from the file and `shape` is completed by complete_shape() first.
/// `experts` may be null: then the snapshot's own or make_expert_weights() are used.
/// Bit-identical on every machine for one (spec, shape, seed). Throws InvalidArgument or FileError.
LayerInputs make_workload(const WorkloadSpec& spec, const LayerShape& shape, std::uint64_t seed,
                          std::shared_ptr<const ExpertWeights> experts = nullptr);

/// Shape as the workload's file dictates it: `requested` fields equal to 0 are taken from the file, others
/// must fit (num_tokens and top_k may be smaller than what is recorded; K of a trace may not differ).
/// Synthetic families return `requested` unchanged.
LayerShape complete_shape(const WorkloadSpec& spec, const LayerShape& requested);

/// Throws InvalidArgument when the grid is too small for the arguments of a synthetic family, as
/// make_workload() does: for those who want to know before they begin.
void require_room(const WorkloadSpec& spec, const LayerShape& shape);

}  // namespace moescope
