#include "reference/ranks/rank_messages.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/base/index.hpp"
#include "reference/stages/rounding.hpp"

namespace moescope::reference {
namespace {

template <class T>
void append(Message& message, const T& value) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  message.insert(message.end(), bytes, bytes + sizeof(T));
}

std::span<const std::byte> row_bytes(const HostTensor& tensor, std::int64_t row) {
  const auto size = at(tensor.cols() * dtype_bytes(tensor.dtype()));
  return {tensor.data() + at(row) * size, size};
}

/// Reads a message from the front.
class Reader {
 public:
  Reader(const Message& message, std::int64_t rank, std::int64_t from)
      : message_(message), rank_(rank), from_(from) {}

  bool done() const { return at_ == message_.size(); }
  template <class T>
  T take() {
    T value;
    std::memcpy(&value, take_bytes(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::span<const std::byte> take_bytes(std::size_t size) {
    if (message_.size() - at_ < size) {
      refuse(fmt::format("ends after {} bytes, in the middle of a token", message_.size()));
    }
    at_ += size;
    return std::span(message_).subspan(at_ - size, size);
  }
  [[noreturn]] void refuse(const std::string& what) const {
    throw RankFailure(rank_, Stage::kTokenDispatch, fmt::format("the message from rank {} {}", from_, what));
  }

 private:
  const Message& message_;
  std::int64_t rank_;
  std::int64_t from_;
  std::size_t at_ = 0;
};

}  // namespace

Message pack_tokens(const LayerInputs& inputs, const Routing& routing, const ExchangePlan& plan,
                    std::span<const std::int32_t> own_tokens, std::int64_t from, std::int64_t to) {
  const ExchangeSizes sizes = ExchangeSizes::of(plan.exchange, inputs.shape.hidden_size, inputs.shape.dtype);
  const bool gather = plan.exchange == Exchange::kGather;
  const std::int64_t link = plan.link(from, to);
  Message message;
  message.reserve(at((gather ? std::ssize(own_tokens) : plan.jobs(from, to)) * (sizes.row + sizes.head) +
                     plan.pairs(from, to) * sizes.pair));
  const auto add = [&](std::int32_t token, std::span<const std::int64_t> pairs) {
    if (!gather) {
      append(message, token);
    }
    append(message, static_cast<std::int32_t>(pairs.size()));
    const auto row = row_bytes(inputs.hidden_states, token);
    message.insert(message.end(), row.begin(), row.end());
    for (const std::int64_t pair : pairs) {
      append(message, routing.expert_ids[at(pair)]);
      append(message, routing.gates[at(pair)]);
    }
  };
  const auto pairs_of = [&](std::int64_t job) {
    return std::span(plan.pair_ids)
        .subspan(at(plan.pair_offsets[at(job)]),
                 at(plan.pair_offsets[at(job + 1)] - plan.pair_offsets[at(job)]));
  };
  std::int64_t job = plan.job_offsets[at(link)];
  const std::int64_t end = plan.job_offsets[at(link + 1)];
  if (!gather) {
    for (; job < end; ++job) {
      add(plan.job_tokens[at(job)], pairs_of(job));
    }
    return message;
  }
  for (const std::int32_t token : own_tokens) {  // ascending, as jobs are
    const bool has_pairs = job < end && plan.job_tokens[at(job)] == token;
    add(token, has_pairs ? pairs_of(job) : std::span<const std::int64_t>{});
    job += has_pairs ? 1 : 0;
  }
  return message;
}

ReceivedTokens unpack_tokens(const LayerInputs& inputs, const ExpertPlacement& placement, Exchange exchange,
                             std::span<const Message> messages, std::int64_t rank) {
  ReceivedTokens received;
  received.offsets.push_back(0);
  Routing& routing = received.routing;
  routing.grid_rows = inputs.shape.grid_rows;
  routing.grid_cols = inputs.shape.grid_cols;
  routing.token_offsets.push_back(0);
  const auto row_size = at(inputs.shape.hidden_size * dtype_bytes(inputs.shape.dtype));
  std::vector<std::span<const std::byte>> rows;
  for (std::size_t from = 0; from < messages.size(); ++from) {
    Reader reader(messages[from], rank, static_cast<std::int64_t>(from));
    while (!reader.done()) {
      if (exchange == Exchange::kDispatch) {
        (void)reader.take<std::int32_t>();  // whose it is: the home knows by the order
      }
      const auto pairs = reader.take<std::int32_t>();
      rows.push_back(reader.take_bytes(row_size));
      std::int32_t before = -1;
      for (std::int32_t p = 0; p < pairs; ++p) {
        const auto expert = reader.take<std::int32_t>();
        if (expert <= before || expert >= inputs.shape.num_experts()) {
          reader.refuse(fmt::format("has expert {} behind {}", expert, before));
        }
        if (!placement.holds(rank, expert)) {
          reader.refuse(fmt::format("asks for expert {}, which is not here", expert));
        }
        before = expert;
        routing.expert_ids.push_back(expert);
        routing.gates.push_back(reader.take<float>());
      }
      routing.token_offsets.push_back(routing.num_pairs());
    }
    received.offsets.push_back(std::ssize(rows));
  }
  routing.num_tokens = std::ssize(rows);
  received.inputs.shape = inputs.shape;
  received.inputs.shape.num_tokens = routing.num_tokens;
  received.inputs.experts = inputs.experts;
  received.inputs.hidden_states =
      HostTensor(inputs.shape.dtype, routing.num_tokens, inputs.shape.hidden_size);
  std::byte* const to = received.inputs.hidden_states.data();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(to + i * row_size, rows[i].data(), row_size);
  }
  return received;
}

Message pack_sums(const HostTensor& sums, std::int64_t begin, std::int64_t end, Dtype dtype) {
  const HostTensor rounded = sums.slice_rows(begin, end - begin).to(dtype);
  return {rounded.data(), rounded.data() + rounded.bytes()};
}

void add_sums(const Message& message, Dtype dtype, std::span<const std::int32_t> tokens, std::int64_t from,
              std::int64_t rank, HostTensor& y) {
  const std::int64_t columns = y.cols();
  if (std::ssize(message) != std::ssize(tokens) * columns * dtype_bytes(dtype)) {
    throw RankFailure(
        rank, Stage::kTokenCombine,
        fmt::format("rank {} returned {} bytes for {} tokens", from, message.size(), tokens.size()));
  }
  with_storage_type(dtype, [&]<class T>(T) {
    std::vector<T> row(at(columns));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      std::memcpy(row.data(), message.data() + i * row.size() * sizeof(T), row.size() * sizeof(T));
      float* const sum = y.f32().row(tokens[i]);
      for (std::size_t c = 0; c < row.size(); ++c) {
        sum[c] += to_float(row[c]);
      }
    }
  });
}

}  // namespace moescope::reference
