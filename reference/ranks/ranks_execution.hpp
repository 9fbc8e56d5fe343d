#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/cost/auto_schedule.hpp"
#include "core/ranks/exchange_plan.hpp"
#include "core/ranks/rank_report.hpp"
#include "core/ranks/rank_transport.hpp"
#include "reference/ranks/rank_messages.hpp"
#include "reference/stages/cpu_execution.hpp"

namespace moescope::reference {

/// A layer on several ranks of one process. Ranks take a stage one after the other, each with all threads, so
/// that a rank's time is its own; in token_dispatch and token_combine they exchange messages through a
/// transport, each from a thread. Homes route their tokens; the ranks that hold experts get tokens with their
/// pairs, compute what they were asked for and return sums in storage dtype; homes add those in fp32 in the
/// order of the ranks, their own unrounded, and round once. So the output is bit-identical from run to run
/// and whatever the number of threads. A placement by counts counts the batch itself.
class RanksExecution final : public CpuExecution {
 public:
  /// Throws InvalidArgument when inputs do not fit, the schedule is not supported on ranks or the placement
  /// does not fit the grid, OutOfMemory. Keeps a reference to `inputs`. `known`: the routing where it is
  /// known already. Without a transport it is loopback.
  /// `rates`: what auto goes by.
  RanksExecution(const LayerInputs& inputs, const ScheduleOptions& options, const MachineRates& rates,
                 const Routing* known = nullptr, std::unique_ptr<RankTransport> transport = nullptr);

  /// False with a reason in `why` when ranks cannot run `kind`.
  static bool supports(ScheduleKind kind, std::string& why);

  Routing routing() override { return current_routing(); }
  std::vector<StageMemory> memory() const override;
  ScheduleOptions schedule_options() const override { return options_; }
  std::string explanation() const override { return explanation_; }
  std::string kernels(Stage stage) const override;
  /// Checks the plan of the last run, too; throws InternalError.
  const RankReport* rank_report() const override;

  /// For tests: where the experts lie, and what the last run exchanged.
  const ExpertPlacement& placement() const { return placement_; }
  const ExchangePlan& plan() const { return plan_; }

 private:
  struct Rank {
    std::vector<std::int32_t> tokens;  ///< at home, ascending
    RouterLogits logits;
    ReceivedTokens received;
    Schedule schedule;
    std::vector<float> scores;
    HostTensor sums;  ///< [received rows, d] fp32
  };

  void compute(Stage stage) override;
  const Routing& current_routing() const { return inputs_.fixed_routing ? *inputs_.fixed_routing : routing_; }
  /// Calls body(rank, Rank&) for every rank in order and keeps its time.
  template <class Body>
  void on_each(Stage stage, const Body& body);
  /// Every rank's messages to every other; returns those that each got.
  std::vector<std::vector<Message>> exchange(Stage stage, std::vector<std::vector<Message>> sent);
  void add_time(Stage stage, std::int64_t rank, double time_s);

  LayerInputs home_inputs(const Rank& rank) const;
  void route_tokens();
  void dispatch();
  void combine();
  void share();

  const LayerInputs& inputs_;
  ScheduleOptions options_;
  std::string explanation_;
  std::unique_ptr<RankTransport> transport_;
  ExpertPlacement placement_;
  std::vector<std::int32_t> home_;
  std::vector<Rank> ranks_;
  Routing routing_;
  ExchangePlan plan_;
  mutable RankReport report_;  ///< times and moved bytes of the last run; the rest when somebody asks
};

}  // namespace moescope::reference
