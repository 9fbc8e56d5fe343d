#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/base/gpu_traits.hpp"
#include "core/cost/memory_plan.hpp"
#include "core/layer/training.hpp"
#include "core/schedule/schedule.hpp"
#include "kernels/contract/backward.hpp"

/// The road that a layer's backward takes through selection, experts and the gates: one class per road, each
/// in a file of its own. CudaTraining has what every road shares: the router's products, batch norm,
/// auxiliary losses, the shared MLP, sums of dX and their rounding, graphs and times.
namespace moescope::cuda {

/// What decides which road a backward takes. `options.kind` is not kAuto.
struct BackwardDesign {
  LayerShape shape;
  ScheduleOptions options;
  bool fixed_routing = false;  ///< recorded routing: no router stages
  SaveMode save = SaveMode::kLogProbs;
  Dtype gradients = Dtype::kBF16;  ///< storage of dW and dV
  GradientForm form = GradientForm::kStored;
  bool lists_touched = false;      ///< the list of touched experts is read on the device
  bool needs_lse = false;          ///< log-sum-exps of the logits are read (z-loss, batch norm)
  GpuTraits gpu;

  /// The selection is made again in the backward.
  bool selects_again() const { return !fixed_routing && save == SaveMode::kMinimal; }
};

/// What a road reads and writes of the layer; device memory but for `weights`.
struct BackwardData {
  const void* hidden_states = nullptr;     ///< X [L,d] in storage dtype
  const void* dy = nullptr;                ///< dY [L,d] in storage dtype
  const DeviceWeights* weights = nullptr;  ///< W, V [N,d] and the router's
  /// [L, Nr+Nc] fp32, as the softmax reads them, before kRouterSelect; dead after it: a road may keep
  /// log-probabilities in their place. Null for a fixed routing.
  float* logits = nullptr;
  float* lse = nullptr;  ///< [2,L] of rows, of columns: kRouterSelect writes it; null: not needed
  std::int64_t* bad_logit = nullptr;  ///< launch_router_select
  /// [L,d] fp32. kExpertsDgrad adds to them where `dx_holds` (the shared MLP's part), else it writes them.
  float* dx = nullptr;
  bool dx_holds = false;
  void* w_in_gradient = nullptr;     ///< dW [N,d] in BackwardDesign::gradients, as BackwardDesign::form says
  void* w_out_gradient = nullptr;    ///< dV [N,d]
  float* logits_gradient = nullptr;  ///< [L, Nr+Nc] fp32: kRouterSelectBackward writes it; without losses
  std::byte* scratch = nullptr;      ///< scratch_bytes() of any stage
  CublasLt* blas = nullptr;
};

class BackwardPath {
 public:
  explicit BackwardPath(const BackwardDesign& design) : design_(design) {}
  BackwardPath(const BackwardPath&) = delete;
  BackwardPath& operator=(const BackwardPath&) = delete;
  virtual ~BackwardPath() = default;

  // Arithmetic on the design, no device needed.
  const BackwardDesign& design() const { return design_; }
  /// There is a stage `schedule` to be run again where selects_again().
  virtual bool schedules() const { return false; }
  /// What the road allocates itself: its terms add up to allocated_bytes(). Where sizes follow from the
  /// selection, an upper bound before fit() and exact after it.
  virtual std::vector<MemoryTerm> memory() const = 0;
  /// What a stage needs in the buffer that all stages use in turn.
  virtual std::int64_t scratch_bytes(Stage stage) const = 0;
  virtual bool deterministic() const = 0;
  /// Kernels of a stage in words.
  virtual std::string kernels(Stage stage) const = 0;

  // On the device. prepare() comes first, once; it and fit() allocate, nothing else does.
  virtual void prepare(const BackwardData& data, cudaStream_t stream) = 0;
  /// Once, after the first selection and schedule: allocates what follows from their counts. The selection
  /// of later runs is the same. Blocks.
  virtual void fit(cudaStream_t /*stream*/) {}
  virtual std::int64_t allocated_bytes() const = 0;
  /// kRouterSelect (of the forward at first; again where selects_again()): selection, log_probs(), lse.
  /// kSchedule. kExpertsDgrad: dx, and what the next two read. kExpertsWgrad: dW, dV, touched experts.
  /// kRouterSelectBackward: logits_gradient.
  virtual void enqueue(Stage stage, cudaStream_t stream) = 0;
  /// Once, after the selection (and kSchedule, where schedules()): z of every pair for SaveMode::kScores.
  virtual void save_scores(cudaStream_t stream) = 0;
  /// kExpertsWgrad has a part that reads no data gradients and may run beside kExpertsDgrad, on another
  /// stream: prepare_wgrad(); enqueue_prepared_wgrad() is then the rest, enqueue(kExpertsWgrad) both.
  virtual bool prepares_wgrad() const { return false; }
  virtual void prepare_wgrad(cudaStream_t /*stream*/) {}
  virtual void enqueue_prepared_wgrad(cudaStream_t stream) { enqueue(Stage::kExpertsWgrad, stream); }
  /// enqueue_prepared_wgrad() uses neither scratch nor cuBLASLt, and may run beside the router's backward.
  virtual bool wgrad_stays_apart() const { return false; }

  /// Ascending, of the last kExpertsWgrad, on the device: where BackwardDesign::lists_touched.
  virtual const std::int32_t* touched() const = 0;
  virtual const std::int32_t* touched_count() const = 0;

  /// Of the last selection, for losses and batch norm.
  virtual DeviceLogProbs log_probs() const = 0;
  /// loads[i] += pairs of expert i, for the balance loss; loads [N] int32.
  virtual void enqueue_loads(std::int32_t* loads, cudaStream_t stream) = 0;

  // Between host and device; these block.
  virtual Routing routing(cudaStream_t stream) const = 0;
  /// Takes the selection's place. Throws InvalidArgument where it does not fit, InternalError where a road
  /// has no lists of pairs.
  virtual void set_routing(const Routing& routing, cudaStream_t stream) = 0;
  /// [M] in CSR order, of the last kExpertsDgrad.
  virtual std::vector<float> gate_gradients(cudaStream_t stream) const = 0;
  /// Ascending, of the last kExpertsWgrad.
  virtual std::vector<std::int32_t> touched_experts(cudaStream_t stream) const = 0;

 protected:
  const LayerShape& shape() const { return design_.shape; }
  const ScheduleOptions& options() const { return design_.options; }
  const GpuTraits& gpu() const { return design_.gpu; }

  BackwardDesign design_;
  BackwardData data_;
};

/// False with a reason in `why` when no road runs this design.
bool has_backward_path(const BackwardDesign& design, std::string& why);
/// The road for a design. Throws InvalidArgument where there is none.
std::unique_ptr<BackwardPath> make_backward_path(const BackwardDesign& design);

/// token_centric and expert_centric: lists of pairs. Data gradients token by token, weight gradients by an
/// owner per expert over pairs sorted by expert.
std::unique_ptr<BackwardPath> make_pairs_backward(const BackwardDesign& design);
/// dense_masked: products over chunks of experts.
std::unique_ptr<BackwardPath> make_dense_masked_backward(const BackwardDesign& design);
/// staircase straight from the router's scores: no pair is listed.
std::unique_ptr<BackwardPath> make_strips_backward(const BackwardDesign& design);

}  // namespace moescope::cuda
