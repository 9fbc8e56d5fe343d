#include "profiler/cluster/ranks_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/index.hpp"
#include "profiler/cluster/rank_share.hpp"

namespace moescope {
namespace {

/// Fewest accesses that a rank's share is replayed with: sampling coarser than this says nothing.
constexpr std::int64_t kFewestAccesses = 20'000;

bool of_home(Stage stage) {
  return stage == Stage::kRouterProject || stage == Stage::kRouterSelect || stage == Stage::kSharedMlp;
}

double time_of(const LayerModel& model, Stage stage) {
  const StageModel* const found = model.find(stage);
  return found == nullptr ? 0 : found->time_s;
}

/// Router and shared MLP of a number of home tokens.
struct HomeTimes {
  double project_s = 0;
  double select_s = 0;
  double shared_s = 0;
};

class Modeller {
 public:
  Modeller(const RanksQuestion& question, const RanksDevice& device,
           const std::function<void(std::int64_t, std::int64_t)>& progress)
      : question_(question),
        device_(device),
        progress_(progress),
        group_(question.schedule.ranks.group),
        exchange_(question.schedule.ranks.exchange) {
    replay_ = device.replay;
    replay_.progress = {};
    replay_.threads = 1;  // ranks are what runs side by side
    replay_.max_accesses =
        std::max(kFewestAccesses, device.replay.max_accesses / (group_.ranks * question.chunks));
  }

  RanksModel model() {
    RanksModel result;
    result.group = group_;
    result.chunks = question_.chunks;
    result.overlap = question_.overlap;
    result.ranks.resize(at(group_.ranks));
    if (group_.ranks == 1) {
      return alone(std::move(result));
    }
    const ScheduleOptions& schedule = question_.schedule;
    const LayerShape& shape = question_.shape;
    const ExpertPlacement placement = make_placement(schedule.ranks.placement, group_, shape.grid_rows,
                                                     shape.grid_cols, &question_.routing);
    const std::vector<std::int32_t> home = homes_of(placement, question_.routing);
    const auto own = home_tokens(home, group_.ranks);
    const std::vector<std::int64_t> experts = placement.experts_per_rank();
    result.times.sum_s.resize(at(group_.ranks));
    for (std::int64_t rank = 0; rank < group_.ranks; ++rank) {
      RankModel& each = result.ranks[at(rank)];
      each.tokens = std::ssize(own[at(rank)]);
      each.experts = experts[at(rank)];
      require_memory(each, rank);
    }
    for (std::int64_t chunk = 0; chunk < question_.chunks; ++chunk) {
      std::vector<std::int32_t> chunk_home;
      const Routing part =
          chunk_routing(question_.routing, home, group_, chunk, question_.chunks, chunk_home);
      const ExchangePlan plan = plan_exchange(exchange_, placement, part, std::move(chunk_home));
      exchange_chunk(plan, result);
      result.times.experts_s.push_back(expert_times(plan, part, result));
    }
    home_stages(own, result);
    finish(result);
    return result;
  }

 private:
  RanksModel alone(RanksModel result) const {
    const Schedule built = build_schedule(question_.routing, question_.schedule);
    ReplayOptions replay = device_.replay;
    replay.progress = {};
    const LayerModel layer =
        simulate(question_.shape, question_.routing, built, replay, [](Stage) { return true; });
    RankModel& rank = result.ranks.front();
    rank.tokens = question_.shape.num_tokens;
    rank.rows = rank.tokens;
    rank.pairs = question_.routing.num_pairs();
    rank.experts = question_.shape.num_experts();
    require_memory(rank, 0);
    rank.router_project_s = time_of(layer, Stage::kRouterProject);
    rank.router_select_s = time_of(layer, Stage::kRouterSelect);
    rank.shared_s = time_of(layer, Stage::kSharedMlp);
    result.layer_s = layer.stages.back().time_s;
    rank.experts_s =
        result.layer_s + layer.hidden_s - rank.router_project_s - rank.router_select_s - rank.shared_s;
    result.compute_s = result.layer_s;
    result.timeline.layer_s = result.layer_s;
    result.timeline.rank_s = {result.layer_s};
    result.timeline.events = {{0, Stage::kLayer, 0, 0, result.layer_s}};
    return result;
  }

  template <class Keep>
  LayerModel simulate(LayerShape shape, const Routing& routing, const Schedule& schedule,
                      const ReplayOptions& replay, const Keep& keep) const {
    shape.num_tokens = routing.num_tokens;
    auto launches = layer_stream(shape, routing, schedule,
                                 device_.device.stream_options(device_.calibration.stream_constants()),
                                 question_.fixed_routing);
    std::erase_if(launches, [&](const KernelLaunch& launch) { return !keep(launch.stage); });
    return simulate_layer(launches, device_.device, device_.calibration, replay);
  }

  void require_memory(const RankModel& rank, std::int64_t number) const {
    const LayerShape& shape = question_.shape;
    const std::int64_t row = shape.hidden_size * dtype_bytes(shape.dtype);
    const std::int64_t need =
        (2 * rank.experts + shape.grid_rows + shape.grid_cols + 3 * shape.shared_size) * row;
    if (need > device_.device.memory_bytes) {
      throw OutOfMemory(fmt::format("rank {} of {} on {}", number, shape.label(), device_.device.name),
                        static_cast<std::uint64_t>(need),
                        static_cast<std::uint64_t>(device_.device.memory_bytes));
    }
  }

  /// Times and bytes of a chunk's exchanges.
  void exchange_chunk(const ExchangePlan& plan, RanksModel& result) {
    const ExchangeSizes sizes =
        ExchangeSizes::of(exchange_, question_.shape.hidden_size, question_.shape.dtype);
    LinkBytes all = link_bytes(plan, sizes);
    const ClusterSpec& cluster = device_.cluster;
    const auto add = [&](std::span<const std::int64_t> bytes, const TransferCurve& curve) {
      const ExchangeTime time = exchange_time(bytes, group_, curve, cluster);
      if (time.time_s > longest_s_) {
        longest_s_ = time.time_s;
        result.by_nic = time.by_nic;
      }
      result.bound_s += time.bound_s;
      result.bytes += time.bytes;
      result.busiest_bytes = std::max(result.busiest_bytes, static_cast<double>(time.busiest_bytes));
      result.messages += std::ranges::count_if(bytes, [](std::int64_t count) { return count > 0; });
      return time.time_s;
    };
    if (exchange_ == Exchange::kGather) {
      const LinkBytes rows = link_bytes(plan, {.row = sizes.row, .back = 0, .head = 0, .pair = 0});
      result.times.rows_s.push_back(add(rows.dispatch, cluster.all_gather));
      result.traffic.rows.push_back(rows.dispatch);
      const LinkBytes pairs = link_bytes(plan, {.row = 0, .back = 0, .head = sizes.head, .pair = sizes.pair});
      std::vector<std::int64_t>& sum = result.traffic.pairs;
      sum.resize(pairs.dispatch.size());
      std::ranges::transform(sum, pairs.dispatch, sum.begin(), std::plus<>());
      if (std::ssize(result.times.rows_s) == question_.chunks) {  // all chunks' at once: they are small
        result.times.pairs_s = add(sum, cluster.all_to_all);
      }
    } else {
      result.times.rows_s.push_back(add(all.dispatch, cluster.all_to_all));
      result.traffic.rows.push_back(std::move(all.dispatch));
    }
    result.times.returns_s.push_back(add(all.combine, cluster.all_to_all));
    for (std::int64_t home = 0; home < group_.ranks; ++home) {
      std::int64_t returned = 0;
      for (std::int64_t from = 0; from < group_.ranks; ++from) {
        returned += all.combine[at(from * group_.ranks + home)];
      }
      result.times.sum_s[at(home)] += static_cast<double>(returned) / device_.device.hbm_read_bytes_per_s;
    }
    result.traffic.returns.push_back(std::move(all.combine));
  }

  /// Schedule and experts of every rank, side by side on the threads asked for.
  std::vector<double> expert_times(const ExchangePlan& plan, const Routing& part, RanksModel& result) {
    std::vector<double> times(at(group_.ranks));
    std::exception_ptr failure;
    std::mutex guard;
#pragma omp parallel for schedule(dynamic, 1) num_threads(std::max(device_.replay.threads, 1))
    for (std::int64_t rank = 0; rank < group_.ranks; ++rank) {
      try {
        const Routing own = rank_routing(plan, part, rank);
        result.ranks[at(rank)].rows += own.num_tokens;
        result.ranks[at(rank)].pairs += own.num_pairs();
        if (own.num_pairs() > 0) {
          const Schedule built = build_schedule(own, question_.schedule);
          const LayerModel model =
              simulate(question_.shape, own, built, replay_, [](Stage stage) { return !of_home(stage); });
          times[at(rank)] = model.stages.back().time_s;
          result.ranks[at(rank)].experts_s += times[at(rank)];
        }
      } catch (...) {
        const std::scoped_lock lock(guard);
        failure = failure ? failure : std::current_exception();
      }
      if (progress_) {
        const std::scoped_lock lock(guard);
        progress_(++done_, group_.ranks * question_.chunks);
      }
    }
    if (failure) {
      std::rethrow_exception(failure);
    }
    return times;
  }

  void home_stages(const std::vector<std::vector<std::int32_t>>& own, RanksModel& result) const {
    std::map<std::int64_t, HomeTimes> known;
    const LayerShape& shape = question_.shape;
    for (std::int64_t rank = 0; rank < group_.ranks; ++rank) {
      RankModel& each = result.ranks[at(rank)];
      auto found = known.find(each.tokens);
      if (found == known.end()) {
        found = known.emplace(each.tokens, home_times(own[at(rank)])).first;
      }
      each.router_project_s = found->second.project_s;
      each.router_select_s = found->second.select_s;
      each.shared_s = found->second.shared_s;
      each.sum_s = 0;
      if (each.tokens > 0) {  // its own sums in fp32, and the output
        const auto values = static_cast<double>(each.tokens * shape.hidden_size);
        each.sum_s =
            device_.device.launch_s + result.times.sum_s[at(rank)] +
            4 * values / device_.device.hbm_read_bytes_per_s +
            static_cast<double>(dtype_bytes(shape.dtype)) * values / device_.device.hbm_write_bytes_per_s;
      }
      result.times.router_s.push_back(each.router_project_s + each.router_select_s);
      result.times.shared_s.push_back(each.shared_s);
      result.times.sum_s[at(rank)] = each.sum_s;
    }
  }

  HomeTimes home_times(std::span<const std::int32_t> tokens) const {
    if (tokens.empty()) {
      return {};
    }
    const Routing own = take_tokens(question_.routing, tokens);
    const Schedule built = build_schedule(own, question_.schedule);
    const LayerModel model = simulate(question_.shape, own, built, replay_, of_home);
    return {time_of(model, Stage::kRouterProject), time_of(model, Stage::kRouterSelect),
            time_of(model, Stage::kSharedMlp)};
  }

  void finish(RanksModel& result) const {
    const RankTimes& times = result.times;
    result.timeline = play(times, exchange_, question_.overlap);
    result.layer_s = result.timeline.layer_s;
    result.compute_s = play(without_exchanges(times), exchange_, question_.overlap).layer_s;
    result.exchange_s = times.pairs_s + std::accumulate(times.rows_s.begin(), times.rows_s.end(), 0.0) +
                        std::accumulate(times.returns_s.begin(), times.returns_s.end(), 0.0);
    double sum = 0;
    double most = 0;
    for (const RankModel& rank : result.ranks) {
      sum += rank.experts_s;
      most = std::max(most, rank.experts_s);
    }
    result.max_over_mean = sum > 0 ? most * static_cast<double>(group_.ranks) / sum : 1;
    result.extrapolated = device_.cluster.extrapolated(group_.ranks, result.busiest_bytes);
  }

  const RanksQuestion& question_;
  const RanksDevice& device_;
  const std::function<void(std::int64_t, std::int64_t)>& progress_;
  RankGroup group_;
  Exchange exchange_;
  ReplayOptions replay_;
  std::int64_t done_ = 0;
  double longest_s_ = 0;
};

}  // namespace

RanksModel model_ranks(const RanksQuestion& question, const RanksDevice& device,
                       const std::function<void(std::int64_t, std::int64_t)>& progress) {
  const RankGroup& group = question.schedule.ranks.group;
  group.validate();
  if (question.chunks < 1) {
    throw InvalidArgument("chunks", fmt::to_string(question.chunks), "must be at least 1");
  }
  if (question.chunks > 1 && (!question.overlap || group.ranks == 1)) {
    throw InvalidArgument("chunks", fmt::to_string(question.chunks),
                          group.ranks == 1 ? "are for several ranks" : "are for exchanges that overlap");
  }
  return Modeller(question, device, progress).model();
}

}  // namespace moescope
