#include "kernels/cuda_backend.hpp"

#include "core/devices/gpu_rates.hpp"
#include "kernels/layer/cuda_layer.hpp"
#include "kernels/layer/cuda_stages.hpp"
#include "kernels/ranks/cuda_ranks.hpp"
#include "kernels/systems/cuda_system_layer.hpp"
#include "kernels/training/cuda_training.hpp"

namespace moescope {
namespace {

using namespace cuda;

class CudaBackend final : public MoeBackend {
 public:
  CudaBackend() : context_(std::make_shared<DeviceContext>()) {}

  std::string_view name() const override { return "cuda"; }
  std::string device() const override { return context_->info.name; }
  bool supports(ScheduleKind /*kind*/, std::string& /*why*/) const override { return true; }
  bool supports_layer(const LayerInputs& inputs, const ScheduleOptions& options,
                      std::string& why) const override;

  RouterLogits router_project(const LayerInputs& inputs) override {
    return project_router(blas_, inputs, stream());
  }
  Routing router_select(const LayerShape& shape, const RouterLogits& logits) override {
    return select_pairs(shape, logits, stream());
  }
  Schedule schedule(const Routing& routing, const ScheduleOptions& options) override {
    return group_pairs(routing, options, stream());
  }
  std::unique_ptr<LayerExecution> prepare(const LayerInputs& inputs,
                                          const ScheduleOptions& options) override {
    return prepare(inputs, options, nullptr);
  }
  std::unique_ptr<LayerExecution> prepare_routed(const LayerInputs& inputs, const ScheduleOptions& options,
                                                 const Routing& routing) override {
    return prepare(inputs, options, &routing);
  }
  bool supports_training(const LayerInputs& inputs, const ScheduleOptions& options,
                         const TrainingOptions& training, std::string& why) const override;
  std::unique_ptr<TrainingExecution> prepare_training(const LayerInputs& inputs, const HostTensor& dy,
                                                      const ScheduleOptions& options,
                                                      const TrainingOptions& training) override;
  bool supports_system(System system, std::string& why) const override;
  bool supports_token_rules(std::string& /*why*/) const override { return true; }
  std::unique_ptr<LayerExecution> prepare_system(const SystemInputs& inputs) override;

 private:
  cudaStream_t stream() const { return stream_.get(); }
  /// Weights on the device; those of the last layer stay, so that stages and schedules of one layer share
  /// them.
  /// `known`: the inputs' routing, which auto needs, where it is known.
  std::unique_ptr<LayerExecution> prepare(const LayerInputs& inputs, const ScheduleOptions& asked,
                                          const Routing* known);
  std::unique_ptr<LayerExecution> prepare_ranks(const LayerInputs& inputs, const ScheduleOptions& options,
                                                const Routing* known);
  std::shared_ptr<const ExpertBuffers> expert_buffers(const LayerInputs& inputs);
  /// What auto takes among the schedules that `runs` says can run.
  template <class Runs>
  ScheduleChoice choose(const LayerInputs& inputs, const ScheduleOptions& asked, const Routing* known,
                        const Runs& runs);
  /// Throws OutOfMemory when `layer` needs more device memory than is free.
  void require_memory(const std::string& layer, std::int64_t need) const;
  /// What decides the path of `inputs` on this device.
  LayerDesign design_of(const LayerInputs& inputs, const ScheduleOptions& options) const {
    return {.shape = inputs.shape,
            .options = options,
            .fixed_routing = inputs.fixed_routing.has_value(),
            .gpu = context_->info};
  }
  BackwardDesign design_of(const LayerInputs& inputs, const ScheduleOptions& options,
                           const TrainingOptions& training) const {
    return {.shape = inputs.shape,
            .options = options,
            .fixed_routing = inputs.fixed_routing.has_value(),
            .save = training.save,
            .gradients = training.gradient_dtype(inputs.shape.dtype),
            .form = training.form,
            .lists_touched =
                training.form != GradientForm::kStored || training.optimizer == OptimizerForm::kTouched,
            .needs_lse = training.losses.z > 0 || training.batch_norm.has_value(),
            .gpu = context_->info};
  }
  /// The layer's output: its forward under `options`, run once, with this selection.
  HostTensor output_of(const LayerInputs& inputs, const ScheduleOptions& options, const Routing& routing);
  GpuFound found() const { return {context_->info, context_->info.memory_bytes_per_s}; }

  std::shared_ptr<DeviceContext> context_;
  Stream stream_;
  CublasLt blas_;
  std::weak_ptr<const ExpertWeights> cached_host_;
  std::shared_ptr<const ExpertBuffers> cached_device_;
  std::shared_ptr<RankCluster> ranks_;  ///< of the last layer on several ranks
};

std::shared_ptr<const ExpertBuffers> CudaBackend::expert_buffers(const LayerInputs& inputs) {
  if (cached_device_ == nullptr || cached_host_.lock() != inputs.experts) {
    cached_device_.reset();
    cached_device_ = std::make_shared<const ExpertBuffers>(inputs.shape, *inputs.experts, stream());
    cached_host_ = inputs.experts;
  }
  return cached_device_;
}

bool CudaBackend::supports_layer(const LayerInputs& inputs, const ScheduleOptions& options,
                                 std::string& why) const {
  return options.ranks.several() ? supports_ranks(inputs, options, context_->info, why)
                                 : has_expert_path(design_of(inputs, options), why);
}

std::unique_ptr<LayerExecution> CudaBackend::prepare_ranks(const LayerInputs& inputs,
                                                           const ScheduleOptions& options,
                                                           const Routing* known) {
  inputs.validate();
  if (std::string why; !supports_ranks(inputs, options, context_->info, why)) {
    throw InvalidArgument("ranks", fmt::to_string(options.ranks.group.ranks), why);
  }
  std::optional<Routing> routing;
  if (known == nullptr && options.ranks.placement.by_counts()) {
    routing = router_select(inputs.shape, router_project(inputs));
  }
  if (ranks_ == nullptr || ranks_->ranks() != options.ranks.group.ranks) {
    ranks_ = std::make_shared<RankCluster>(options.ranks.group.ranks);
  }
  return prepare_on_ranks(ranks_, context_, inputs, options,
                          known != nullptr ? known
                          : routing        ? &*routing
                                           : nullptr);
}

template <class Runs>
ScheduleChoice CudaBackend::choose(const LayerInputs& inputs, const ScheduleOptions& asked,
                                   const Routing* known, const Runs& runs) {
  Routing computed;
  if (known == nullptr && !inputs.fixed_routing.has_value()) {
    computed = router_select(inputs.shape, router_project(inputs));
  }
  const Routing& routing = known != nullptr                   ? *known
                           : inputs.fixed_routing.has_value() ? *inputs.fixed_routing
                                                              : computed;
  MachineRates rates = schedule_rates(project_devices(), found());
  if (inputs.fixed_routing.has_value()) {
    rates.selection.reset();  // nothing is selected
  }
  std::erase_if(rates.candidates,
                [&](const ScheduleRates& candidate) { return !runs(candidate_options(asked, candidate)); });
  return choose_schedule(inputs.shape, routing, asked, rates);
}

std::unique_ptr<LayerExecution> CudaBackend::prepare(const LayerInputs& inputs, const ScheduleOptions& asked,
                                                     const Routing* known) {
  if (asked.ranks.several()) {
    return prepare_ranks(inputs, asked, known);
  }
  ScheduleOptions options = asked;
  std::string explanation;
  if (asked.kind == ScheduleKind::kAuto) {
    const ScheduleChoice choice = choose(inputs, asked, known, [&](const ScheduleOptions& candidate) {
      std::string why;
      return supports_layer(inputs, candidate, why);
    });
    options = choice.schedule;
    explanation = choice.explanation();
  }
  require_gpu_shape(inputs.shape, options.kind);
  inputs.validate();
  const bool cached = cached_device_ != nullptr && cached_host_.lock() == inputs.experts;
  if (!cached) {
    cached_device_.reset();
  }
  std::unique_ptr<ExpertPath> path = make_expert_path(design_of(inputs, options));
  const LayerMemoryPlan plan = plan_layer_memory(*path);
  const std::int64_t need = plan.total_bytes() - (cached ? plan.experts : 0);
  require_memory(fmt::format("layer {} under {}", inputs.shape.label(), to_string(options.kind)), need);
  return std::make_unique<CudaLayer>(context_, expert_buffers(inputs), inputs, std::move(path),
                                     std::move(explanation));
}

bool CudaBackend::supports_training(const LayerInputs& inputs, const ScheduleOptions& options,
                                    const TrainingOptions& training, std::string& why) const {
  return options.kind == ScheduleKind::kAuto || has_backward_path(design_of(inputs, options, training), why);
}

HostTensor CudaBackend::output_of(const LayerInputs& inputs, const ScheduleOptions& options,
                                  const Routing& routing) {
  LayerInputs selected;
  selected.shape = inputs.shape;
  selected.hidden_states = inputs.hidden_states.clone();
  selected.experts = inputs.experts;
  selected.fixed_routing = routing;
  ScheduleOptions plain = options;
  plain.strip_rule = StripRule::kMinimalCover;  // rows alone need the router's scores
  const auto layer = prepare(selected, plain, &routing);
  layer->run(L2State::kWarm);
  return layer->output();
}

std::unique_ptr<TrainingExecution> CudaBackend::prepare_training(const LayerInputs& inputs,
                                                                 const HostTensor& dy,
                                                                 const ScheduleOptions& asked,
                                                                 const TrainingOptions& training) {
  inputs.validate();
  validate_training(inputs, dy, training);
  ScheduleOptions options = asked;
  std::string explanation;
  if (asked.kind == ScheduleKind::kAuto) {
    // By the forward's rates: the backward's order of schedules is the same, and there are no others.
    const ScheduleChoice choice = choose(inputs, asked, nullptr, [&](const ScheduleOptions& candidate) {
      std::string why;
      return supports_training(inputs, candidate, training, why) && supports_layer(inputs, candidate, why);
    });
    options = choice.schedule;
    explanation = choice.explanation();
  }
  require_gpu_shape(inputs.shape, options.kind);
  std::unique_ptr<BackwardPath> path = make_backward_path(design_of(inputs, options, training));
  const bool has_bias = !inputs.router.row_bias.empty() || !inputs.router.col_bias.empty();
  const MemoryPlan plan = plan_training_memory(*path, training, has_bias);
  const bool cached = cached_device_ != nullptr && cached_host_.lock() == inputs.experts;
  std::int64_t need = cached ? -ExpertBuffers::required_bytes(inputs.shape) : 0;
  for (const MemoryTerm& term : plan.terms) {
    need += term.bytes;
  }
  require_memory(fmt::format("the backward of {} under {}", inputs.shape.label(), to_string(options.kind)),
                 need);
  return std::make_unique<CudaTraining>(
      context_, expert_buffers(inputs), inputs, dy, training, std::move(path),
      [&](const Routing& routing) { return output_of(inputs, options, routing); }, std::move(explanation));
}

void CudaBackend::require_memory(const std::string& layer, std::int64_t need) const {
  std::size_t free_bytes = 0;
  std::size_t all_bytes = 0;
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
  if (static_cast<std::uint64_t>(need) > free_bytes) {
    throw OutOfMemory(fmt::format("{} on {}", layer, device()), static_cast<std::uint64_t>(need), free_bytes);
  }
}

bool CudaBackend::supports_system(System system, std::string& why) const {
  if (system == System::kOmniMoe) {
    why = "omnimoe is prepared from LayerInputs";
    return false;
  }
  return true;
}

std::unique_ptr<LayerExecution> CudaBackend::prepare_system(const SystemInputs& inputs) {
  std::optional<ProductKeyRates> rates;
  if (inputs.shape.has_product_keys() && inputs.schedule == ScheduleKind::kAuto) {
    rates = product_key_rates(project_devices(), found());
  }
  const SystemDesign design = design_system(inputs, context_->info, rates);
  require_memory(fmt::format("layer {}", inputs.shape.label()), plan_system_memory(design).total_bytes());
  return std::make_unique<CudaSystemLayer>(context_, inputs, design);
}

}  // namespace

ExitCode serve_cuda_rank(const RankEnvironment& environment) { return serve_rank(environment); }

std::unique_ptr<MoeBackend> make_cuda_backend() { return std::make_unique<CudaBackend>(); }

}  // namespace moescope
