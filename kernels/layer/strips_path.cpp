#include "core/base/error.hpp"
#include "core/tiling/strip_tiles.hpp"
#include "kernels/buffers/strip_buffers.hpp"
#include "kernels/buffers/strip_lists.hpp"
#include "kernels/layer/expert_path.hpp"

namespace moescope::cuda {
namespace {

class StripsPath final : public ExpertPath {
 public:
  using ExpertPath::ExpertPath;

  bool schedules() const override { return true; }
  bool deterministic() const override { return options().deterministic; }
  bool reads_logits() const override { return true; }
  bool prepares_sums() const override { return true; }
  PathMemory memory() const override {
    PathMemory memory;
    memory.schedule = strip_capacity(shape(), options().strip_rule, options().tile_tokens, gpu()).bytes;
    memory.extra = shape().num_tokens * static_cast<std::int64_t>(sizeof(std::int32_t));
    memory.sums = staircase_sums_bytes(shape(), sums());
    return memory;
  }
  std::string kernels(Stage stage) const override {
    switch (stage) {
      case Stage::kRouterSelect:
        return "router_select_strips";
      case Stage::kSchedule:
        return "schedule_strips";
      default:
        return std::string("staircase_prepare + experts_staircase<") +
               (sums() == StaircaseSums::kFp16 ? "fp16" : "fixed-point") + " sums>" + finish_name();
    }
  }

  void prepare(const PathData& data, cudaStream_t /*stream*/) override {
    data_ = data;
    strips_ = StripBuffers(shape(), options().strip_rule, options().tile_tokens);
    exponents_ = DeviceBuffer<std::int32_t>(shape().num_tokens);
  }
  void enqueue(Stage stage, cudaStream_t stream) override {
    switch (stage) {
      case Stage::kRouterSelect:
        launch_router_select_strips(shape(), options().strip_rule, data_.logits(), strips_.view(),
                                    data_.bad_logit, stream);
        break;
      case Stage::kSchedule:
        launch_schedule_strips(shape(), options().strip_rule, options().tile_tokens, strips_.view(), stream);
        break;
      case Stage::kExperts:
        launch_experts_staircase(shape(), data_.hidden_states, *data_.weights, strips_.view(), output(),
                                 stream);
        break;
      default:
        throw InternalError(fmt::format("no stage {} on strips", to_string(stage)));
    }
  }
  void prepare_sums(cudaStream_t stream) override {
    launch_staircase_prepare(shape(), data_.hidden_states, data_.expert_bound, strips_.view(), output(),
                             stream);
  }
  void finish(cudaStream_t stream) override {
    launch_round_output(shape(), output(), data_.shared_result, data_.rounded, stream);
  }

  Routing routing(cudaStream_t stream) const override {
    return routing_of(shape(), strips_.download(stream));
  }
  void set_routing(const Routing& /*routing*/, cudaStream_t /*stream*/) override {
    throw InternalError("the path on strips selects from logits and takes no list of pairs");
  }
  Schedule schedule(cudaStream_t stream) const override {
    const HostStrips strips = strips_.download(stream);
    return schedule_of(shape(), options(), strips, routing_of(shape(), strips));
  }

 private:
  StaircaseSums sums() const {
    return strips_sum_in_fp16(shape(), options()) ? StaircaseSums::kFp16 : StaircaseSums::kFixedPoint;
  }
  StaircaseOutput output() const {
    return {.kind = sums(),
            .sums = data_.working,
            .exponents = exponents_.get(),
            .log_scales = shape().gate_mode == GateMode::kProbability ? strips_.view().gate_shift : nullptr};
  }

  StripBuffers strips_;
  DeviceBuffer<std::int32_t> exponents_;
};

}  // namespace

std::unique_ptr<ExpertPath> make_strips_path(const LayerDesign& design) {
  return std::make_unique<StripsPath>(design);
}

}  // namespace moescope::cuda
