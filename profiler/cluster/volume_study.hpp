#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/ranks/exchange_plan.hpp"
#include "core/results/result.hpp"
#include "profiler/cluster/cluster_spec.hpp"
#include "profiler/text/figure.hpp"
#include "profiler/text/table.hpp"

/// What travels among GPUs, against the sizes of a layer: the paper's claim that it stays constant beyond a
/// number of experts (appendix C), held against exact plans.
namespace moescope {

/// One layer on one number of ranks, with experts dealt out by consecutive ids. Bytes are of all ranks.
struct LayerVolume {
  Point point;                   ///< with ranks and placement
  std::int64_t tokens = 0;       ///< [L]
  std::int64_t experts = 0;      ///< [N]
  std::int64_t top_k = 0;        ///< [K]
  std::int64_t ranks = 0;        ///< [P]
  std::int64_t active = 0;       ///< distinct experts that the batch uses
  std::int64_t most_active = 0;  ///< min(N, L K): the paper's bound
  double ranks_per_token = 0;
  std::int64_t gather = 0;         ///< all tokens to all ranks, sums back
  std::int64_t dispatch = 0;       ///< tokens to the ranks of their experts, sums back
  std::int64_t weights = 0;        ///< experts to the ranks of the tokens that use them: W and V rows
  std::optional<double> gather_s;  ///< modelled, on a cluster: both ways, one after another
  std::optional<double> dispatch_s;
};
/// `cluster`: null for bytes alone. Throws InvalidArgument for a placement or a group that does not fit.
LayerVolume layer_volume(const LayerShape& shape, const Routing& routing, Point point,
                         const RankOptions& ranks, const ClusterSpec* cluster);

/// Layers that differ in one size.
struct VolumeAxis {
  std::string name;  ///< "N", "L", "K" or "P"
  std::vector<LayerVolume> layers;
};

/// How a kind of bytes goes with a size over an axis: the exponent of a power of it, between the axis' ends.
double growth(const VolumeAxis& axis, std::int64_t LayerVolume::*bytes);

/// The bytes that the paper states: about 80 MB in 0.521 ms on 8 GPUs, constant beyond N = L K = 16,384.
struct PaperVolume {
  static constexpr double kBytes = 80e6;
  static constexpr double kSeconds = 0.521e-3;
  static constexpr std::int64_t kRanks = 8;
  static constexpr std::int64_t kActive = 16'384;
};

Table volume_table(std::span<const VolumeAxis> axes);
/// Paragraphs: what is constant in what, where min(N, L K) binds, and the paper's time beside the modelled
/// time of the same bytes, with what it leaves open.
std::vector<std::string> volume_conclusion(std::span<const VolumeAxis> axes, const ClusterSpec* cluster);
Figure volume_figure(std::span<const VolumeAxis> axes);
/// Of each layer once; bytes analytic, times modelled.
std::vector<ResultRow> volume_rows(std::span<const VolumeAxis> axes);

}  // namespace moescope
