// A rank other than 0: prepares, runs and answers as rank 0 says.
#include <cuda_runtime_api.h>

#include <map>

#include "core/base/build_info.hpp"
#include "core/base/caught_error.hpp"
#include "kernels/ranks/cuda_ranks.hpp"
#include "kernels/ranks/rank_protocol.hpp"

namespace moescope::cuda {
namespace {

class RankService {
 public:
  RankService(RankNetwork& network, std::int64_t device) : network_(network) {
    MOESCOPE_CUDA_CHECK(cudaSetDevice(static_cast<int>(device)));
    context_ = std::make_shared<DeviceContext>();
  }

  /// False at the end.
  bool serve() {
    network_.set_stage(Stage::kLayer);
    const RankMessage message = network_.receive(0, true);
    switch (message.word) {
      case RankWord::kTask:
        prepare(message.body);
        return true;
      case RankWord::kRun:
        run(message.body);
        return true;
      case RankWord::kOutput:
        network_.send(0, RankWord::kAnswer, pack(layer(message.body).output()));
        return true;
      case RankWord::kRouting:
        network_.send(0, RankWord::kAnswer, pack(layer(message.body).routing()));
        return true;
      case RankWord::kDrop:
        layers_.erase(number_in(message.body));
        return true;
      default:
        return false;
    }
  }

 private:
  RankLayer& layer(const Message& body) { return *layers_.at(number_in(body)); }

  void prepare(const Message& body) {
    RankTask task = unpack_task(body, weights_);
    const bool same = weights_id_ == task.weights_id && buffers_ != nullptr;
    if (const std::string short_of = missing_memory(task, network_.rank(), same); !short_of.empty()) {
      network_.send(0, RankWord::kAnswer, std::as_bytes(std::span(short_of)));
      return;
    }
    if (!same) {
      buffers_.reset();
      const Stream stream;
      buffers_ = std::make_shared<const RankWeightBuffers>(task.shape, *task.weights, stream.get());
      weights_ = task.weights;
      weights_id_ = task.weights_id;
    }
    const std::int64_t id = task.id;
    auto made = std::make_unique<RankLayer>(context_, std::move(task), buffers_, network_);
    network_.send(0, RankWord::kAnswer, {});
    if (network_.receive(0).word != RankWord::kRun) {
      return;  // another rank lacks the memory
    }
    made->connect();
    layers_[id] = std::move(made);
  }

  void run(const Message& body) {
    RunOrder order;
    if (body.size() != sizeof order) {
      throw InternalError("an order to run is cut short");
    }
    std::memcpy(&order, body.data(), sizeof order);
    const std::vector<StageTime> times = follow(*layers_.at(order.id), order);
    network_.send(0, RankWord::kAnswer, std::as_bytes(std::span(times)));
  }

  RankNetwork& network_;
  std::shared_ptr<DeviceContext> context_;
  std::shared_ptr<const RankWeights> weights_;
  std::shared_ptr<const RankWeightBuffers> buffers_;
  std::int64_t weights_id_ = 0;
  std::map<std::int64_t, std::unique_ptr<RankLayer>> layers_;
};

}  // namespace

ExitCode serve_rank(const RankEnvironment& environment) {
  const auto network = RankNetwork::connect(environment.rank, environment.ranks, environment.address,
                                            environment.port, rank_identity(), rank_timeout());
  try {
    RankService service(*network, environment.local_rank);
    while (service.serve()) {
    }
    return ExitCode::kOk;
  } catch (const RankFailure&) {
    return ExitCode::kDeviceError;  // rank 0 knows, or is gone
  } catch (...) {
    const CaughtError error = caught_error();
    network->send(0, RankWord::kFailed,
                  failure_message(error.code, fmt::format("rank {}, {}: {}", environment.rank,
                                                          to_string(network->stage()), error.message)));
    return error.code;
  }
}

}  // namespace moescope::cuda
