#include "core/base/error.hpp"
#include "kernels/buffers/schedule_buffers.hpp"
#include "kernels/layer/pairs_path.hpp"
#include "kernels/runtime/host_copy.hpp"

namespace moescope::cuda {
namespace {

class TilesPath final : public PairsPath {
 public:
  using PairsPath::PairsPath;

  bool schedules() const override { return true; }
  std::vector<Stage> expert_stages() const override {
    return combines_apart() ? std::vector{Stage::kExpertScores, Stage::kExpertCombine}
                            : std::vector{Stage::kExperts};
  }
  /// expert_centric is the paper's scatter-add.
  bool deterministic() const override { return combines_apart(); }
  PathMemory memory() const override {
    PathMemory memory = PairsPath::memory();
    memory.schedule = schedule_capacity(shape(), options()).array_bytes;
    return memory;
  }
  std::int64_t scratch_bytes(Stage stage) const override {
    switch (stage) {
      case Stage::kSchedule:
        return schedule_capacity(shape(), options()).workspace_bytes;
      case Stage::kExpertScores:
      case Stage::kExpertCombine:
        return shape().num_pairs() * static_cast<std::int64_t>(sizeof(float));
      default:
        return 0;
    }
  }
  std::string kernels(Stage stage) const override {
    switch (stage) {
      case Stage::kSchedule:
        return "schedule";
      case Stage::kExpertScores:
        return "expert_scores_tiles";
      case Stage::kExpertCombine:
        return "expert_combine" + finish_name();
      default:
        return PairsPath::kernels(stage);
    }
  }

  void prepare(const PathData& data, cudaStream_t stream) override {
    PairsPath::prepare(data, stream);
    schedule_ = ScheduleBuffers(shape(), options());
  }
  void enqueue(Stage stage, cudaStream_t stream) override {
    switch (stage) {
      case Stage::kSchedule:
        launch_schedule(shape(), options(), pairs(), schedule_.view(), data_.scratch, stream);
        break;
      case Stage::kExpertScores:
        launch_expert_scores_tiles(shape(), options(), data_.hidden_states, weights(), pairs(),
                                   schedule_.view(), device_scores(), stream);
        break;
      case Stage::kExpertCombine:
        launch_expert_combine(shape(), weights(), pairs(), device_scores(), data_.y(), stream);
        break;
      default:
        PairsPath::enqueue(stage, stream);
    }
  }
  Schedule schedule(cudaStream_t stream) const override { return schedule_.download(stream); }
  std::vector<float> scores(cudaStream_t stream) const override {
    return copy_to_host(device_scores(), shape().num_pairs(), stream);
  }
  void set_scores(const std::vector<float>& scores, cudaStream_t stream) override {
    if (std::ssize(scores) != shape().num_pairs()) {
      throw InvalidArgument("scores", std::to_string(scores.size()),
                            fmt::format("must be one per pair, {}", shape().num_pairs()));
    }
    MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(device_scores(), scores.data(), scores.size() * sizeof(float),
                                        cudaMemcpyHostToDevice, stream));
    MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
  }

 private:
  bool combines_apart() const {
    return options().kind == ScheduleKind::kStaircase && options().deterministic;
  }
  float* device_scores() const { return static_cast<float*>(static_cast<void*>(data_.scratch)); }
  std::string expert_kernels() const override { return "experts_tiles"; }
  void enqueue_experts(cudaStream_t stream) override {
    launch_experts_tiles(shape(), options(), data_.hidden_states, weights(), pairs(), schedule_.view(),
                         data_.y(), stream);
  }

  ScheduleBuffers schedule_;
};

}  // namespace

std::unique_ptr<ExpertPath> make_tiles_path(const LayerDesign& design) {
  return std::make_unique<TilesPath>(design);
}

}  // namespace moescope::cuda
