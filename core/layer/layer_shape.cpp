#include "core/layer/layer_shape.hpp"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "core/base/error.hpp"

namespace moescope {
namespace {

// Ids, extents and grid products must fit std::int32_t.
constexpr std::int64_t kExtentLimit = std::int64_t{1} << 31;

void require(bool holds, std::string_view field, std::int64_t value, std::string_view requirement) {
  if (!holds) {
    throw InvalidArgument(field, fmt::to_string(value), requirement);
  }
}

}  // namespace

std::string_view to_string(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kGelu:
      return "gelu";
    case Activation::kRelu:
      return "relu";
  }
  return "?";
}

std::string_view to_string(GateMode mode) {
  switch (mode) {
    case GateMode::kSoftmax:
      return "softmax";
    case GateMode::kProbability:
      return "probability";
    case GateMode::kRelu:
      return "relu";
  }
  return "?";
}

Activation parse_activation(std::string_view text) {
  for (const auto activation : {Activation::kSilu, Activation::kGelu, Activation::kRelu}) {
    if (text == to_string(activation)) {
      return activation;
    }
  }
  throw InvalidArgument("activation", text, "must be silu, gelu or relu");
}

GateMode parse_gate_mode(std::string_view text) {
  for (const auto mode : {GateMode::kSoftmax, GateMode::kProbability, GateMode::kRelu}) {
    if (text == to_string(mode)) {
      return mode;
    }
  }
  throw InvalidArgument("gate_mode", text, "must be softmax, probability or relu");
}

void LayerShape::validate() const {
  const std::array<std::pair<std::string_view, std::int64_t>, 5> extents = {{{"num_tokens", num_tokens},
                                                                             {"hidden_size", hidden_size},
                                                                             {"grid_rows", grid_rows},
                                                                             {"grid_cols", grid_cols},
                                                                             {"top_k", top_k}}};
  for (const auto& [field, value] : extents) {
    require(value >= 1, field, value, "must be at least 1");
    require(value < kExtentLimit, field, value, "must be below 2^31");
  }
  require(shared_size >= 0, "shared_size", shared_size, "must not be negative (0 = no shared MLP)");
  require(shared_size < kExtentLimit, "shared_size", shared_size, "must be below 2^31");
  require(num_experts() < kExtentLimit, "num_experts", num_experts(),
          fmt::format("grid_rows * grid_cols = {} * {} must be below 2^31", grid_rows, grid_cols));
  require(top_k <= num_experts(), "top_k", top_k,
          fmt::format("must not exceed num_experts = {} ({} x {})", num_experts(), grid_rows, grid_cols));
  if (gate_mode == GateMode::kRelu) {
    throw InvalidArgument("gate_mode", to_string(gate_mode),
                          "is PEER's alone; must be softmax or probability");
  }
  // Products of two of these (L*K, N*d, L*d) are below 2^62 by now.
}

std::string LayerShape::label() const {
  const std::string experts =
      grid_rows == grid_cols ? fmt::to_string(num_experts()) : fmt::format("{}x{}", grid_rows, grid_cols);
  return fmt::format("L{}_d{}_N{}_K{}", num_tokens, hidden_size, experts, top_k);
}

}  // namespace moescope
