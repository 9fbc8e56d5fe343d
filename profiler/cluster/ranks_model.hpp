#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/ranks/exchange_plan.hpp"
#include "core/results/result.hpp"
#include "profiler/cluster/cluster_spec.hpp"
#include "profiler/cluster/exchange_time.hpp"
#include "profiler/cluster/rank_timeline.hpp"
#include "profiler/simulator/sim_layer.hpp"

/// A layer on the GPUs of a cluster: stages of every rank by the simulator of one device, on that rank's own
/// share of tokens, pairs and experts; exchanges by the bytes of the plan.
namespace moescope {

/// What is modelled of a layer's batch. References must outlive the call.
struct RanksQuestion {
  const LayerShape& shape;
  const Routing& routing;
  bool fixed_routing = false;
  ScheduleOptions schedule;  ///< schedule.ranks: group, placement, exchange
  std::int64_t chunks = 1;   ///< parts of the batch that travel and are computed in turns (EPS-MoE)
  bool overlap = true;
};

/// The device and how it is simulated.
struct RanksDevice {
  const ClusterSpec& cluster;
  const DeviceSpec& device;
  const Calibration& calibration;
  ReplayOptions replay;  ///< max_accesses: of all ranks together
};

/// Stages of one rank.
struct RankModel {
  std::int64_t tokens = 0;   ///< at home
  std::int64_t rows = 0;     ///< that it gets, its own included
  std::int64_t pairs = 0;    ///< that it computes
  std::int64_t experts = 0;  ///< that it stores
  double router_project_s = 0;
  double router_select_s = 0;
  double experts_s = 0;  ///< schedule and experts of all chunks
  double shared_s = 0;
  double sum_s = 0;  ///< adding what came back: its bytes at the rate of HBM, and a launch
};

/// Bytes from each rank to each other of every exchange: [P*P], sender * P + receiver.
struct RankTraffic {
  std::vector<std::vector<std::int64_t>> rows;     ///< [C] of X; in a dispatch with their pairs
  std::vector<std::int64_t> pairs;                 ///< gather: experts and gates of all chunks; else empty
  std::vector<std::vector<std::int64_t>> returns;  ///< [C] partial sums
};

struct RanksModel {
  RankGroup group;
  std::int64_t chunks = 1;
  bool overlap = true;
  std::vector<RankModel> ranks;
  RankTimes times;
  RankTimeline timeline;
  double layer_s = 0;
  double compute_s = 0;       ///< the layer with exchanges that take no time
  double exchange_s = 0;      ///< all exchanges, one after another
  double bound_s = 0;         ///< of exchanges, at the rates of links and NICs
  bool by_nic = false;        ///< whether NICs decide the longest exchange
  double max_over_mean = 1;   ///< time of experts of the slowest rank over the mean
  std::int64_t bytes = 0;     ///< of all exchanges over all links
  double busiest_bytes = 0;   ///< the most of one rank in one exchange
  std::int64_t messages = 0;  ///< sends of all ranks
  RankTraffic traffic;
  std::vector<std::string> extrapolated;

  double exposed_s() const { return layer_s - compute_s; }
};

/// Models it. One rank has the times that simulate_layer() gives, whatever its chunks. Of homes with the same
/// number of tokens the first stands for the router and the shared MLP of all. `progress`: ranks done, of how
/// many. Throws what placing, building the schedule and simulating throw; InvalidArgument("chunks", ...)
/// for fewer than 1, and for more than 1 without overlap or on one rank; OutOfMemory for a rank whose share
/// the device cannot hold.
RanksModel model_ranks(const RanksQuestion& question, const RanksDevice& device,
                       const std::function<void(std::int64_t, std::int64_t)>& progress = {});

}  // namespace moescope
