#include "kernels/ranks/cuda_ranks.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "core/base/build_info.hpp"
#include "core/base/index.hpp"
#include "core/ranks/placement_use.hpp"
#include "kernels/ranks/rank_protocol.hpp"

namespace moescope::cuda {
namespace {

class CudaRanksExecution final : public LayerExecution {
 public:
  CudaRanksExecution(std::shared_ptr<RankCluster> cluster, std::unique_ptr<RankLayer> own, std::int64_t id,
                     const LayerInputs& inputs, const ScheduleOptions& options, ExpertPlacement placement)
      : cluster_(std::move(cluster)),
        own_(std::move(own)),
        id_(id),
        shape_(inputs.shape),
        options_(options),
        placement_(std::move(placement)) {
    report_.options = options.ranks;
    report_.experts = placement_.experts_per_rank();
  }
  ~CudaRanksExecution() override {
    try {
      cluster_->guarded([&] { cluster_->network().send_all(RankWord::kDrop, body_of(id_)); });
    } catch (const Error&) {  // they are gone
    }
  }

  std::vector<StageTime> run(L2State l2) override {
    l2_ = l2;
    std::vector<RankTime> times;
    std::vector<StageTime> slowest = run_all({.id = id_, .l2 = l2}, times);
    report_.times = std::move(times);
    return slowest;
  }

  HostTensor output() override {
    return cluster_->guarded([&] {
      HostTensor all(shape_.dtype, shape_.num_tokens, shape_.hidden_size);
      std::byte* to = all.data();
      each_part(
          RankWord::kOutput, [&] { return own_->output(); }, unpack_tensor,
          [&](const HostTensor& part) {
            std::memcpy(to, part.data(), at(part.bytes()));
            to += part.bytes();
          });
      return all;
    });
  }

  Routing routing() override {
    return cluster_->guarded([&] {
      Routing all;
      all.num_tokens = shape_.num_tokens;
      all.grid_rows = shape_.grid_rows;
      all.grid_cols = shape_.grid_cols;
      all.token_offsets.push_back(0);
      each_part(
          RankWord::kRouting, [&] { return own_->routing(); }, unpack_routing,
          [&](const Routing& part) {
            const std::int64_t before = all.num_pairs();
            for (std::int64_t token = 0; token < part.num_tokens; ++token) {
              all.token_offsets.push_back(before + part.token_offsets[at(token) + 1]);
            }
            all.expert_ids.insert(all.expert_ids.end(), part.expert_ids.begin(), part.expert_ids.end());
            all.gates.insert(all.gates.end(), part.gates.begin(), part.gates.end());
          });
      return all;
    });
  }

  std::vector<StageMemory> memory() const override { return own_->memory(); }
  ClockSample clocks() const override { return own_->clocks(); }
  ScheduleOptions schedule_options() const override { return options_; }
  bool deterministic() const override { return own_->deterministic(); }
  std::span<const Stage> stages() const override { return own_->stages(); }
  void enqueue(Stage stage) override {
    throw InternalError(fmt::format("{} alone on one of several GPUs", to_string(stage)));
  }
  void synchronize() override {}
  void empty_cache() override { own_->empty_cache(); }
  std::string kernels(Stage stage) const override { return own_->kernels(stage); }

  const RankReport* rank_report() const override {
    if (report_.tokens.empty()) {
      count();
    }
    if (!report_.times.empty() && !report_.exposed_s) {
      auto* const self = const_cast<CudaRanksExecution*>(this);  // measured once, when somebody asks
      constexpr auto bit = [](RankPhase phase) { return 1U << static_cast<unsigned>(phase); };
      report_.exposed_rows_s = self->exposed(bit(RankPhase::kRows));
      report_.exposed_s =
          self->exposed(bit(RankPhase::kRows) | bit(RankPhase::kSelection) | bit(RankPhase::kSums));
    }
    return &report_;
  }

 private:
  /// One order to all ranks; the slowest rank's times.
  std::vector<StageTime> run_all(const RunOrder& order, std::vector<RankTime>& all) {
    return cluster_->guarded([&] {
      RankNetwork& network = cluster_->network();
      network.set_stage(Stage::kLayer);
      network.send_all(RankWord::kRun, std::as_bytes(std::span(&order, 1)));
      std::vector<StageTime> slowest = follow(*own_, order);
      for (const StageTime& time : slowest) {
        all.push_back({0, time.stage, time.time_s});
      }
      for (std::int64_t rank = 1; rank < network.ranks(); ++rank) {
        const Message answer = network.expect(rank, RankWord::kAnswer);
        std::vector<StageTime> times(slowest.size());
        if (answer.size() != times.size() * sizeof(StageTime)) {
          throw InternalError(fmt::format("rank {} answers with times of other stages", rank));
        }
        std::memcpy(times.data(), answer.data(), answer.size());
        for (std::size_t i = 0; i < times.size(); ++i) {
          slowest[i].time_s = std::max(slowest[i].time_s, times[i].time_s);
          all.push_back({rank, times[i].stage, times[i].time_s});
        }
      }
      return slowest;
    });
  }

  /// The layer's time beyond that of the same layer with silent phases: medians of samples in turn.
  double exposed(std::uint32_t silent) {
    constexpr int kSamples = 15;
    std::vector<double> with;
    std::vector<double> without;
    std::vector<RankTime> unused;
    for (int i = 0; i <= kSamples; ++i) {
      const double usual = run_all({.id = id_, .l2 = l2_, .all_stages = false}, unused).front().time_s;
      const double quiet =
          run_all({.id = id_, .l2 = l2_, .all_stages = false, .silent = silent}, unused).front().time_s;
      if (i > 0) {  // the first captures
        with.push_back(usual);
        without.push_back(quiet);
      }
    }
    const auto median = [](std::vector<double>& values) {
      std::ranges::nth_element(values, values.begin() + std::ssize(values) / 2);
      return values[values.size() / 2];
    };
    return median(with) - median(without);
  }

  template <class Own, class Unpack, class Take>
  void each_part(RankWord word, const Own& own, const Unpack& unpack, const Take& take) {
    RankNetwork& network = cluster_->network();
    network.set_stage(Stage::kLayer);
    network.send_all(word, body_of(id_));
    take(own());
    for (std::int64_t rank = 1; rank < network.ranks(); ++rank) {
      take(unpack(network.expect(rank, RankWord::kAnswer)));
    }
  }

  /// Of the routing that ran. On a GPU all of a home's rows go to all ranks, with the scores that tell pairs,
  /// and bf16 sums of all rows come back.
  void count() const {
    const Routing routing = const_cast<CudaRanksExecution*>(this)->routing();
    const RankGroup& group = options_.ranks.group;
    const ExchangePlan plan =
        plan_exchange(Exchange::kGather, placement_, routing, consecutive_homes(shape_.num_tokens, group));
    validate(plan, placement_, routing);
    report_.tokens = plan.tokens_per_rank();
    report_.pairs = plan.pairs_per_rank();
    const PlacementUse use = placement_use(plan, placement_, routing);
    report_.ranks_per_token = use.ranks_per_token;
    report_.remote_ranks_per_token = use.remote_ranks_per_token;
    LinkBytes bytes;
    bytes.group = group;
    bytes.dispatch.assign(at(group.ranks * group.ranks), 0);
    bytes.combine = bytes.dispatch;
    for (std::int64_t from = 0; from < group.ranks; ++from) {
      for (std::int64_t to = 0; to < group.ranks; ++to) {
        if (from != to) {
          bytes.dispatch[at(from * group.ranks + to)] =
              report_.tokens[at(from)] * own_->dispatch_bytes_per_token();
          bytes.combine[at(from * group.ranks + to)] =
              report_.tokens[at(to)] * shape_.hidden_size * dtype_bytes(shape_.dtype);
        }
      }
    }
    report_.planned = std::move(bytes);
  }

  std::shared_ptr<RankCluster> cluster_;
  std::unique_ptr<RankLayer> own_;
  std::int64_t id_;
  LayerShape shape_;
  ScheduleOptions options_;
  ExpertPlacement placement_;
  L2State l2_ = L2State::kCold;  ///< of the last run
  mutable RankReport report_;
};

}  // namespace

std::string rank_identity() {
  const BuildInfo& info = build_info();
  return fmt::format("moescope {} {}{} {} {}", info.version, info.git_revision, info.git_dirty ? "+" : "",
                     info.build_type, info.cuda_compiler);
}

std::string missing_memory(const RankTask& task, std::int64_t rank, bool has_weights) {
  std::size_t free_bytes = 0;
  std::size_t all_bytes = 0;
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
  std::int64_t need = RankLayer::required_bytes(task, rank, current_gpu());
  if (!has_weights) {
    need += RankWeightBuffers::required_bytes(task.shape, std::ssize(task.weights->rows),
                                              std::ssize(task.weights->cols));
  }
  return need <= static_cast<std::int64_t>(free_bytes)
             ? std::string()
             : fmt::format("rank {}: {} needs {} bytes of device memory, {} are free", rank,
                           task.shape.label(), need, free_bytes);
}

RankCluster::RankCluster(std::int64_t ranks) : ranks_(ranks) {
  const auto environment = rank_environment();
  if (environment && environment->ranks != ranks) {
    throw Error(ExitCode::kUsage, fmt::format("--ranks = {}: {} has started {} processes", ranks,
                                              environment->launcher, environment->ranks));
  }
  const std::string address = environment ? environment->address : "127.0.0.1";
  if (!environment) {
    int devices = 0;
    MOESCOPE_CUDA_CHECK(cudaGetDeviceCount(&devices));
    if (devices < ranks) {
      throw NoDevice(fmt::format("--ranks {} needs {} GPUs, there {} {}", ranks, ranks,
                                 devices == 1 ? "is" : "are", devices));
    }
  }
  network_ = RankNetwork::listen(ranks, environment ? "0.0.0.0" : address,
                                 environment ? environment->port : 0, rank_timeout());
  if (!environment) {
    processes_ = RankProcesses(ranks, address, network_->port());
  }
  network_->accept(rank_identity(), [&] { return processes_.ended(); });
}

RankCluster::~RankCluster() {
  if (network_ != nullptr) {
    try {
      network_->send_all(RankWord::kEnd);
    } catch (const Error&) {  // they are gone
    }
  }
}

RankNetwork& RankCluster::network() {
  if (network_ == nullptr) {
    throw Error(code_, failure_);
  }
  return *network_;
}

void RankCluster::end(const Error& error) {
  failure_ = error.what();
  code_ = error.code();
  network_.reset();  // the others see it, and end
  const std::int64_t gone = processes_.ended();
  if (gone >= 0 && code_ == ExitCode::kDeviceError && failure_.ends_with(": ended")) {
    failure_ += fmt::format(" ({})", processes_.how(gone));
  }
  throw Error(code_, failure_);
}

bool supports_ranks(const LayerInputs& inputs, const ScheduleOptions& options, const GpuTraits& gpu,
                    std::string& why) {
  const PlacementSpec& placement = options.ranks.placement;
  if (options.kind != ScheduleKind::kStaircase && options.kind != ScheduleKind::kAuto) {
    why = "several GPUs run staircase, whose strips they share";
  } else if (placement.kind != PlacementKind::kStrips) {
    why = fmt::format("several GPUs share strips: --placement strips, not {}", placement.text());
  } else if (options.ranks.exchange != Exchange::kGather) {
    why = "several GPUs gather all tokens: --exchange gather";
  } else if (inputs.fixed_routing.has_value()) {
    why = "several GPUs need a router; recorded routing has none";
  } else if (inputs.shape.gate_mode == GateMode::kRelu) {
    why = "the strips' kernels have no relu gates";
  } else if (!experts_staircase_supported(inputs.shape, gpu)) {
    why = "several GPUs need the strips' kernels: bf16, compute capability 9.0, hidden_size a multiple of 8";
  } else {
    return true;
  }
  return false;
}

std::unique_ptr<LayerExecution> prepare_on_ranks(std::shared_ptr<RankCluster> cluster,
                                                 std::shared_ptr<DeviceContext> context,
                                                 const LayerInputs& inputs, const ScheduleOptions& asked,
                                                 const Routing* routing) {
  ScheduleOptions options = asked;
  options.kind = ScheduleKind::kStaircase;
  const RankGroup& group = options.ranks.group;
  ExpertPlacement placement =
      make_placement(options.ranks.placement, group, inputs.shape.grid_rows, inputs.shape.grid_cols, routing);
  std::vector<std::int32_t> owner = placement.row_owner;
  owner.insert(owner.end(), placement.col_owner.begin(), placement.col_owner.end());
  RankNetwork& network = cluster->network();
  RankCluster::Loaded& loaded = cluster->loaded();
  const bool same = loaded.id > 0 && loaded.experts.lock() == inputs.experts && loaded.owner == owner;
  const std::int64_t id = cluster->next_id();
  const auto task_of = [&](std::int64_t rank) {
    const HomeTokens home = HomeTokens::of(group, rank, inputs.shape.num_tokens);
    RankTask task;
    task.id = id;
    task.shape = inputs.shape;
    task.options = options;
    task.strip_owner = owner;
    task.hidden_states = inputs.hidden_states.slice_rows(home.first, home.count);
    task.router = {inputs.router.row.clone(), inputs.router.col.clone(), inputs.router.row_bias,
                   inputs.router.col_bias};
    task.weights_id = same ? loaded.id : id;
    task.weights = std::make_shared<const RankWeights>(same ? rank_strips(placement, rank)
                                                            : rank_weights(inputs, placement, rank));
    return task;
  };
  auto made = cluster->guarded([&] {
    network.set_stage(Stage::kLayer);
    for (std::int64_t rank = 1; rank < group.ranks; ++rank) {
      network.send(rank, RankWord::kTask, pack(task_of(rank), !same));
    }
    RankTask own = task_of(0);
    std::string short_of = missing_memory(own, 0, same);
    std::unique_ptr<RankLayer> layer;
    if (short_of.empty()) {
      if (!same) {
        loaded.own.reset();
        const Stream stream;
        loaded.own = std::make_shared<const RankWeightBuffers>(inputs.shape, *own.weights, stream.get());
        loaded.experts = inputs.experts;
        loaded.owner = owner;
        loaded.id = id;
      }
      layer = std::make_unique<RankLayer>(std::move(context), std::move(own), loaded.own, network);
    }
    for (std::int64_t rank = 1; rank < group.ranks; ++rank) {
      const Message answer = network.expect(rank, RankWord::kAnswer);
      if (!answer.empty() && short_of.empty()) {
        short_of.assign(reinterpret_cast<const char*>(answer.data()), answer.size());
      }
    }
    if (!short_of.empty()) {
      throw Error(ExitCode::kOutOfMemory, short_of);
    }
    network.send_all(RankWord::kRun);
    layer->connect();
    return layer;
  });
  return std::make_unique<CudaRanksExecution>(std::move(cluster), std::move(made), id, inputs, options,
                                              std::move(placement));
}

}  // namespace moescope::cuda
