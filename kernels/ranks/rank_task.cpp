#include "kernels/ranks/rank_task.hpp"

#include <cstring>
#include <span>
#include <type_traits>

#include "core/base/error.hpp"
#include "core/base/index.hpp"

namespace moescope::cuda {
namespace {

class Writer {
 public:
  template <class T>
  void value(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes(std::as_bytes(std::span(&value, 1)));
  }
  template <class T>
  void values(const std::vector<T>& values) {
    value(std::ssize(values));
    bytes(std::as_bytes(std::span(values)));
  }
  void tensor(const HostTensor& tensor) {
    value(tensor.dtype());
    value(tensor.rows());
    value(tensor.cols());
    bytes({tensor.data(), at(tensor.bytes())});
  }
  void bytes(std::span<const std::byte> bytes) {
    message_.insert(message_.end(), bytes.begin(), bytes.end());
  }
  Message take() { return std::move(message_); }

 private:
  Message message_;
};

class Reader {
 public:
  explicit Reader(const Message& message) : left_(message) {}

  template <class T>
  T value() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  template <class T>
  std::vector<T> values() {
    const auto count = value<std::int64_t>();
    if (count < 0 || at(count) > left_.size() / sizeof(T)) {
      throw InternalError("a message between ranks is cut short");
    }
    std::vector<T> values(at(count));
    const auto bytes = take(values.size() * sizeof(T));
    if (!bytes.empty()) {
      std::memcpy(values.data(), bytes.data(), bytes.size());
    }
    return values;
  }
  HostTensor tensor() {
    const auto dtype = value<Dtype>();
    const auto rows = value<std::int64_t>();
    const auto cols = value<std::int64_t>();
    HostTensor tensor(dtype, rows, cols);
    const auto bytes = take(at(tensor.bytes()));
    if (!bytes.empty()) {
      std::memcpy(tensor.data(), bytes.data(), bytes.size());
    }
    return tensor;
  }

 private:
  std::span<const std::byte> take(std::size_t size) {
    if (size > left_.size()) {
      throw InternalError("a message between ranks is cut short");
    }
    const auto taken = left_.first(size);
    left_ = left_.subspan(size);
    return taken;
  }
  std::span<const std::byte> left_;
};

void put_weights(Writer& writer, const RankWeights& weights) {
  writer.values(weights.rows);
  writer.values(weights.cols);
  for (const HostTensor* tensor :
       {&weights.w_in_rows, &weights.w_out_rows, &weights.w_in_cols, &weights.w_out_cols}) {
    writer.tensor(*tensor);
  }
  writer.value(weights.shared.has_value());
  if (weights.shared) {
    writer.tensor(weights.shared->gate);
    writer.tensor(weights.shared->up);
    writer.tensor(weights.shared->down);
  }
}

RankWeights take_weights(Reader& reader) {
  RankWeights weights;
  weights.rows = reader.values<std::int32_t>();
  weights.cols = reader.values<std::int32_t>();
  for (HostTensor* tensor :
       {&weights.w_in_rows, &weights.w_out_rows, &weights.w_in_cols, &weights.w_out_cols}) {
    *tensor = reader.tensor();
  }
  if (reader.value<bool>()) {
    weights.shared.emplace();
    weights.shared->gate = reader.tensor();
    weights.shared->up = reader.tensor();
    weights.shared->down = reader.tensor();
  }
  return weights;
}

/// What of the options a rank's layer depends on.
struct PlainOptions {
  bool deterministic;
  StripRule strip_rule;
  std::int64_t tile_tokens;
  RankGroup group;
};

HostTensor taken_rows(const HostTensor& from, std::span<const std::int32_t> strips, std::int64_t count,
                      std::int64_t strip_step, std::int64_t expert_step) {
  HostTensor result(from.dtype(), std::ssize(strips) * count, from.cols());
  const std::int64_t row_bytes = from.cols() * dtype_bytes(from.dtype());
  std::byte* to = result.data();
  for (const std::int32_t strip : strips) {
    for (std::int64_t e = 0; e < count; ++e) {
      std::memcpy(to, from.data() + (strip * strip_step + e * expert_step) * row_bytes, at(row_bytes));
      to += row_bytes;
    }
  }
  return result;
}

}  // namespace

RankWeights rank_strips(const ExpertPlacement& placement, std::int64_t rank) {
  const auto own = [&](const std::vector<std::int32_t>& owner) {
    std::vector<std::int32_t> strips;
    for (std::size_t strip = 0; strip < owner.size(); ++strip) {
      if (owner[strip] == rank || owner[strip] == kEveryRank) {
        strips.push_back(static_cast<std::int32_t>(strip));
      }
    }
    return strips;
  };
  RankWeights weights;
  weights.rows = own(placement.row_owner);
  weights.cols = own(placement.col_owner);
  return weights;
}

RankWeights rank_weights(const LayerInputs& inputs, const ExpertPlacement& placement, std::int64_t rank) {
  const LayerShape& shape = inputs.shape;
  RankWeights weights = rank_strips(placement, rank);
  const ExpertWeights& experts = *inputs.experts;
  weights.w_in_rows = taken_rows(experts.w_in, weights.rows, shape.grid_cols, shape.grid_cols, 1);
  weights.w_out_rows = taken_rows(experts.w_out, weights.rows, shape.grid_cols, shape.grid_cols, 1);
  weights.w_in_cols = taken_rows(experts.w_in, weights.cols, shape.grid_rows, 1, shape.grid_cols);
  weights.w_out_cols = taken_rows(experts.w_out, weights.cols, shape.grid_rows, 1, shape.grid_cols);
  if (experts.shared) {
    weights.shared.emplace(SharedMlpWeights{experts.shared->gate.clone(), experts.shared->up.clone(),
                                            experts.shared->down.clone()});
  }
  return weights;
}

Message pack(const RankTask& task, bool with_weights) {
  Writer writer;
  writer.value(task.id);
  writer.value(task.shape);
  writer.value(PlainOptions{task.options.deterministic, task.options.strip_rule, task.options.tile_tokens,
                            task.options.ranks.group});
  writer.values(task.strip_owner);
  writer.tensor(task.hidden_states);
  writer.tensor(task.router.row);
  writer.tensor(task.router.col);
  writer.values(task.router.row_bias);
  writer.values(task.router.col_bias);
  writer.value(task.weights_id);
  writer.value(with_weights);
  if (with_weights) {
    put_weights(writer, *task.weights);
  }
  return writer.take();
}

RankTask unpack_task(const Message& message, const std::shared_ptr<const RankWeights>& last) {
  Reader reader(message);
  RankTask task;
  task.id = reader.value<std::int64_t>();
  task.shape = reader.value<LayerShape>();
  const auto options = reader.value<PlainOptions>();
  task.options.kind = ScheduleKind::kStaircase;
  task.options.deterministic = options.deterministic;
  task.options.strip_rule = options.strip_rule;
  task.options.tile_tokens = options.tile_tokens;
  task.options.ranks.group = options.group;
  task.options.ranks.placement.kind = PlacementKind::kStrips;
  task.strip_owner = reader.values<std::int32_t>();
  task.hidden_states = reader.tensor();
  task.router.row = reader.tensor();
  task.router.col = reader.tensor();
  task.router.row_bias = reader.values<float>();
  task.router.col_bias = reader.values<float>();
  task.weights_id = reader.value<std::int64_t>();
  task.weights = reader.value<bool>() ? std::make_shared<const RankWeights>(take_weights(reader)) : last;
  if (task.weights == nullptr) {
    throw InternalError("a task without weights, and none before it");
  }
  return task;
}

Message pack(const HostTensor& tensor) {
  Writer writer;
  writer.tensor(tensor);
  return writer.take();
}
HostTensor unpack_tensor(const Message& message) { return Reader(message).tensor(); }

Message pack(const Routing& routing) {
  Writer writer;
  writer.value(routing.num_tokens);
  writer.value(routing.grid_rows);
  writer.value(routing.grid_cols);
  writer.values(routing.token_offsets);
  writer.values(routing.expert_ids);
  writer.values(routing.gates);
  return writer.take();
}
Routing unpack_routing(const Message& message) {
  Reader reader(message);
  Routing routing;
  routing.num_tokens = reader.value<std::int64_t>();
  routing.grid_rows = reader.value<std::int64_t>();
  routing.grid_cols = reader.value<std::int64_t>();
  routing.token_offsets = reader.values<std::int64_t>();
  routing.expert_ids = reader.values<std::int32_t>();
  routing.gates = reader.values<float>();
  return routing;
}

}  // namespace moescope::cuda
