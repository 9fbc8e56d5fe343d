#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"

namespace moescope::reference {

/// Written before a cold run: above the last-level cache share of today's CPUs.
inline constexpr std::int64_t kFlushBytes = std::int64_t{64} << 20;

/// What rows say ran a stage: "cpu router_select", of stages that a schedule orders "cpu experts
/// (staircase)"; of Stage::kLayer all of `stages`, "cpu schedule (staircase) + cpu experts (staircase)".
std::string cpu_kernels(Stage stage, std::span<const Stage> stages, ScheduleKind kind);

/// What all layers on the CPU share: stages run one after the other, timed with steady_clock, the output
/// rounded to storage once, at the end. Every one of them is deterministic, whatever the number of threads.
class CpuExecution : public LayerExecution {
 public:
  std::vector<StageTime> run(L2State l2) override;
  HostTensor output() override { return output_.clone(); }
  bool deterministic() const override { return true; }
  std::span<const Stage> stages() const override { return stages_; }
  void enqueue(Stage stage) override;
  void synchronize() override {}
  void empty_cache() override;

 protected:
  explicit CpuExecution(Dtype dtype) : dtype_(dtype) {}

  /// One stage; the last one leaves the layer's sum in y_.
  virtual void compute(Stage stage) = 0;

  std::vector<Stage> stages_;  ///< set by the derived class's constructor
  HostTensor y_;               ///< [L,d] fp32, until the last stage's end rounds it

 private:
  Dtype dtype_;
  HostTensor output_;
};

}  // namespace moescope::reference
