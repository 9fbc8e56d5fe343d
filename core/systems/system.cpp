#include "core/systems/system.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "core/base/error.hpp"
#include "core/systems/system_traits.hpp"

namespace moescope {
namespace {

constexpr std::int64_t kExtentLimit = std::int64_t{1} << 31;  // ids and extents fit 32 bits

void require(bool holds, std::string_view field, std::int64_t value, std::string_view requirement) {
  if (!holds) {
    throw InvalidArgument(field, fmt::to_string(value), requirement);
  }
}

/// A field is either used by the system, and at least 1, or not, and then it has its idle value.
void require_extent(std::string_view field, std::int64_t value, bool used, std::int64_t idle,
                    std::string_view system) {
  if (used) {
    require(value >= 1, field, value, "must be at least 1");
    require(value < kExtentLimit, field, value, "must be below 2^31");
  } else {
    require(value == idle, field, value, fmt::format("must be {}: {} has none", idle, system));
  }
}

std::int64_t square_root(std::int64_t n) { return std::llround(std::sqrt(static_cast<double>(n))); }

void require_gate_mode(const SystemShape& shape) {
  const SystemTraits& traits = traits_of(shape.system);
  if (std::ranges::find(traits.gate_modes, shape.gate_mode) == traits.gate_modes.end()) {
    std::vector<std::string_view> modes;
    for (const GateMode mode : traits.gate_modes) {
      modes.push_back(to_string(mode));
    }
    throw InvalidArgument("gate_mode", to_string(shape.gate_mode),
                          fmt::format("{} has {}{}", traits.name, fmt::join(modes, " and "),
                                      modes.size() == 1 ? " alone" : ""));
  }
}

void require_top_k(const SystemShape& shape) {
  if (shape.has_product_keys()) {
    const auto side = square_root(shape.num_experts);
    require(side * side == shape.num_experts, "num_experts", shape.num_experts, "must be a square");
    require(shape.top_k % shape.heads == 0, "top_k", shape.top_k,
            fmt::format("must be a multiple of heads = {}", shape.heads));
    require(shape.num_queries() < kExtentLimit, "heads", shape.heads,
            fmt::format("num_tokens * heads = {} must be below 2^31", shape.num_queries()));
  }
  require(shape.top_k_per_query() <= shape.num_experts, "top_k", shape.top_k,
          fmt::format("must not exceed num_experts = {}{}", shape.num_experts,
                      shape.heads > 1 ? fmt::format(" for each of {} heads", shape.heads) : ""));
}

/// Elements in storage dtype; in floating point where extents that are valid alone may overflow together.
template <class Number>
Number weight_elements(const SystemShape& shape) {
  const auto d = static_cast<Number>(shape.hidden_size);
  const auto n = static_cast<Number>(shape.num_experts);
  Number elements = 3 * static_cast<Number>(shape.shared_size) * d;  // gate, up, down of the dense branch
  if (shape.has_ffn_experts()) {
    elements += n * d;                                               // router
    elements += n * 3 * static_cast<Number>(shape.expert_size) * d;  // gate, up, down of every expert
  }
  if (shape.has_product_keys()) {
    const auto half_query = static_cast<Number>(shape.heads * shape.key_size);
    elements += 2 * half_query * d;                                      // query projection
    elements += 2 * half_query * static_cast<Number>(shape.num_keys());  // sub-keys
    elements += n * d;                                                   // values, or w_out
    elements += shape.has_neurons() ? n * d : 0;                         // w_in
  }
  return elements;
}

}  // namespace

std::string_view to_string(System system) { return traits_of(system).name; }

System parse_system(std::string_view text) {
  const auto all = system_traits();
  const auto found = std::ranges::find(all, text, &SystemTraits::name);
  if (found == all.end()) {
    throw InvalidArgument(
        "system", text,
        fmt::format("must be one of {}",
                    fmt::join(system_names([](const SystemTraits&) { return true; }), ", ")));
  }
  return found->system;
}

std::span<const System> systems() {
  static const std::vector<System> kSystems = [] {
    std::vector<System> all;
    for (const SystemTraits& traits : system_traits()) {
      all.push_back(traits.system);
    }
    return all;
  }();
  return kSystems;
}

bool SystemShape::has_ffn_experts() const { return traits_of(system).experts == ExpertKind::kFfn; }
bool SystemShape::has_product_keys() const { return traits_of(system).router == RouterKind::kProductKeys; }
bool SystemShape::has_routing() const { return traits_of(system).router != RouterKind::kNone; }
bool SystemShape::has_dense_branch() const { return traits_of(system).dense_branch; }
bool SystemShape::has_neurons() const { return traits_of(system).experts == ExpertKind::kNeuron; }

std::int64_t SystemShape::num_keys() const { return has_product_keys() ? square_root(num_experts) : 0; }

LayerShape SystemShape::row_shape() const {
  LayerShape shape;
  shape.num_tokens = num_tokens;
  shape.hidden_size = hidden_size;
  shape.grid_rows = has_product_keys() ? num_keys() : 1;
  shape.grid_cols = has_product_keys() ? num_keys() : has_ffn_experts() ? num_experts : 1;
  shape.top_k = top_k;
  shape.shared_size = shared_size;
  shape.dtype = dtype;
  shape.activation = activation;
  shape.gate_mode = gate_mode;
  return shape;
}

LayerShape SystemShape::query_shape() const {
  LayerShape shape = row_shape();
  shape.num_tokens = num_queries();
  shape.top_k = has_routing() ? top_k_per_query() : 0;
  return shape;
}

void SystemShape::validate() const {
  const auto name = to_string(system);
  if (system == System::kOmniMoe) {
    throw InvalidArgument("system", name, "is described by a LayerShape; SystemShape is for the baselines");
  }
  require_extent("num_tokens", num_tokens, true, 0, name);
  require_extent("hidden_size", hidden_size, true, 0, name);
  require_extent("num_experts", num_experts, has_routing(), 0, name);
  require_extent("expert_size", expert_size, has_ffn_experts(), 0, name);
  require_extent("shared_size", shared_size, has_dense_branch(), 0, name);
  require_extent("top_k", top_k, has_routing(), 0, name);
  require_extent("heads", heads, has_product_keys(), 1, name);
  require_extent("key_size", key_size, has_product_keys(), 0, name);
  require_gate_mode(*this);
  if (has_routing()) {
    require_top_k(*this);
  }
  const std::array<std::pair<std::string_view, std::int64_t>, 3> products = {
      {{"num_experts * 2 * expert_size", num_experts * 2 * expert_size},
       {"num_experts * hidden_size", has_ffn_experts() ? num_experts * hidden_size : 0},
       {"2 * heads * key_size", 2 * heads * key_size}}};
  for (const auto& [what, value] : products) {
    require(value < kExtentLimit, what, value, "must be below 2^31");
  }
  if (weight_elements<double>(*this) >= 0x1p57) {
    throw InvalidArgument("hidden_size", fmt::to_string(hidden_size),
                          "makes 2^57 weights or more together with the other extents");
  }
}

std::string SystemShape::label() const {
  std::string text = fmt::format("{}_L{}_d{}", to_string(system), num_tokens, hidden_size);
  if (has_routing()) {
    text += fmt::format("_N{}_K{}", num_experts, top_k);
  }
  return text;
}

std::int64_t SystemShape::weight_bytes() const {
  return weight_elements<std::int64_t>(*this) * dtype_bytes(dtype) +
         (system == System::kPkm ? 2 * key_size * dtype_bytes(Dtype::kF32) : 0);  // layer norm, fp32
}

}  // namespace moescope
