#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/layer/stage.hpp"
#include "core/schedule/schedule.hpp"
#include "kernels/contract/launch.hpp"

/// The road that a layer takes from the router's scores to its output: one class per road, each in a file of
/// its own. A layer runs it, captured in graphs and timed, and runs single stages of it alone, for `check`.
namespace moescope::cuda {

/// What decides which road a layer takes. `options.kind` is not kAuto.
struct LayerDesign {
  LayerShape shape;
  ScheduleOptions options;
  bool fixed_routing = false;  ///< recorded routing: no router stages
  GpuTraits gpu;
};

/// Device memory of a path in bytes, from the design alone.
struct PathMemory {
  std::int64_t routing = 0;           ///< lists of pairs
  std::int64_t select_workspace = 0;  ///< of router_select, beside the logits
  std::int64_t schedule = 0;  ///< arrays of the device schedule, strips, or cuSPARSE's copies and buffers
  std::int64_t extra = 0;     ///< what only the experts' kernel uses beside these: exponents, a workspace
  std::int64_t sums = 0;      ///< what the experts add to, in the place of the logits; 0: rounded at once
  std::int64_t library = 0;   ///< cuBLASLt's workspace; 0: the experts do without
};

/// What a path reads and writes of the layer that it belongs to; device memory but for `weights`.
struct PathData {
  const void* hidden_states = nullptr;
  const DeviceWeights* weights = nullptr;
  const float* expert_bound = nullptr;    ///< launch_expert_bound; null with fp32 storage
  std::byte* working = nullptr;           ///< the logits; after the selection the experts' sums
  std::byte* select_workspace = nullptr;  ///< PathMemory::select_workspace
  std::byte* scratch = nullptr;           ///< scratch_bytes() of any stage
  std::int64_t* bad_logit = nullptr;      ///< launch_router_select
  const float* shared_result = nullptr;   ///< [L,d] to be added; null without a shared MLP
  void* rounded = nullptr;                ///< [L,d] bf16 output; null with fp32 storage: it is `working`
  CublasLt* blas = nullptr;

  float* logits() const { return static_cast<float*>(static_cast<void*>(working)); }
  float* y() const { return logits(); }
};

class ExpertPath {
 public:
  explicit ExpertPath(const LayerDesign& design) : design_(design) {}
  ExpertPath(const ExpertPath&) = delete;
  ExpertPath& operator=(const ExpertPath&) = delete;
  virtual ~ExpertPath() = default;

  // Arithmetic on the design, no device needed.
  const LayerDesign& design() const { return design_; }
  /// There is a stage `schedule`.
  virtual bool schedules() const { return false; }
  /// kExperts, or kExpertScores and kExpertCombine.
  virtual std::vector<Stage> expert_stages() const { return {Stage::kExperts}; }
  virtual PathMemory memory() const = 0;
  /// What a stage needs in the buffer that all stages use in turn.
  virtual std::int64_t scratch_bytes(Stage /*stage*/) const { return 0; }
  virtual bool deterministic() const = 0;
  /// Stages after the selection read what it left of the logits: no pair is listed.
  virtual bool reads_logits() const { return false; }
  /// prepare_sums() has to run between the selection and the experts; it may run beside the stages in
  /// between.
  virtual bool prepares_sums() const { return false; }
  /// The last stage's kernel itself adds the shared MLP's result and rounds: finish() does nothing.
  virtual bool finishes_alone() const { return false; }
  /// Kernels of a stage in words: "router_select_strips", "experts_staircase<fp16 sums> + round_output".
  virtual std::string kernels(Stage stage) const = 0;

  // On the device. prepare() comes first, once; it allocates, nothing else does.
  virtual void prepare(const PathData& data, cudaStream_t stream) = 0;
  /// A stage from router_select on, but for shared_mlp.
  virtual void enqueue(Stage stage, cudaStream_t stream) = 0;
  virtual void prepare_sums(cudaStream_t /*stream*/) {}
  /// After the last stage: the shared MLP's result added, rounding to storage.
  virtual void finish(cudaStream_t stream);

  // Between host and device; these block.
  /// The selection that the last router_select left, or set_routing().
  virtual Routing routing(cudaStream_t stream) const = 0;
  /// Takes the selection's place. Throws InvalidArgument where it does not fit the layer, InternalError where
  /// reads_logits().
  virtual void set_routing(const Routing& routing, cudaStream_t stream) = 0;
  /// What stage `schedule` left. Throws InternalError without that stage.
  virtual Schedule schedule(cudaStream_t stream) const;
  /// Scores between expert_scores and expert_combine. Throw InternalError without these stages.
  virtual std::vector<float> scores(cudaStream_t stream) const;
  virtual void set_scores(const std::vector<float>& scores, cudaStream_t stream);

 protected:
  const LayerShape& shape() const { return design_.shape; }
  const ScheduleOptions& options() const { return design_.options; }
  const GpuTraits& gpu() const { return design_.gpu; }
  /// " + round_output" where finish() launches it.
  std::string finish_name() const;

  LayerDesign design_;
  PathData data_;
};

/// False with a reason in `why` when no path runs this design.
bool has_expert_path(const LayerDesign& design, std::string& why);
/// The road for a design. Throws InvalidArgument where there is none, or tile_tokens is out of range.
std::unique_ptr<ExpertPath> make_expert_path(const LayerDesign& design);

/// token_centric: one fused kernel that also adds the shared MLP and rounds.
std::unique_ptr<ExpertPath> make_token_centric_path(const LayerDesign& design);
/// expert_centric and staircase from lists of pairs, grouped on the device; sums by fp32 atomics, or
/// (staircase that is to be repeatable) scores and combine apart.
std::unique_ptr<ExpertPath> make_tiles_path(const LayerDesign& design);
/// staircase straight from the router's scores: no pair is listed.
std::unique_ptr<ExpertPath> make_strips_path(const LayerDesign& design);
std::unique_ptr<ExpertPath> make_dense_masked_path(const LayerDesign& design);
std::unique_ptr<ExpertPath> make_sparse_library_path(const LayerDesign& design);

}  // namespace moescope::cuda
