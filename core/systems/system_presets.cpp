#include <fmt/format.h>

#include <array>
#include <map>
#include <vector>

#include "core/base/error.hpp"
#include "core/systems/system.hpp"

namespace moescope {
namespace {

constexpr std::array<std::int64_t, 5> kTableATokens = {1024, 2048, 4096, 8192, 16384};
constexpr std::string_view kSweepK = "paper Table A, sweep over K at L = 1024";
constexpr std::string_view kSweepL = "paper Table A, sweep over L at the smallest K";
// Heads must divide every K of the sweep: PEER's 8 do not.
constexpr std::string_view kOwnKeys = "; heads and key width are own choice, the table names neither";
constexpr std::string_view kSmall = "own choice: parameters of about the small_layer2 snapshot's layer";

/// What a system's presets differ in.
struct PresetRow {
  SystemShape table_a;                  ///< at L = 1024 and the smallest K
  SystemShape small;                    ///< the same where nothing else is said
  std::array<std::int64_t, 4> top_k{};  ///< of the sweep over K; dense_mlp has none
};

constexpr SystemShape at_table_a(SystemShape shape) {
  shape.num_tokens = 1024;
  shape.hidden_size = 1024;
  return shape;
}

/// `table_a` with narrower extents.
constexpr SystemShape narrow(SystemShape table_a, const SystemShape& extents) {
  table_a.hidden_size = 256;
  const auto take = [](std::int64_t extent, std::int64_t& out) { out = extent != 0 ? extent : out; };
  take(extents.num_experts, table_a.num_experts);
  take(extents.expert_size, table_a.expert_size);
  take(extents.shared_size, table_a.shared_size);
  take(extents.top_k, table_a.top_k);
  take(extents.key_size, table_a.key_size);
  return table_a;
}

constexpr SystemShape kGShardA =
    at_table_a({.system = System::kGShard, .num_experts = 128, .expert_size = 512, .top_k = 2});
constexpr SystemShape kDeepSeekA = at_table_a({.system = System::kDeepSeekMoe,
                                               .num_experts = 256,
                                               .expert_size = 256,
                                               .shared_size = 1024,
                                               .top_k = 4,
                                               .gate_mode = GateMode::kProbability});
constexpr SystemShape kPkmA = at_table_a(
    {.system = System::kPkm, .num_experts = 444 * 444, .top_k = 2500, .heads = 4, .key_size = 128});
constexpr SystemShape kPeerA = at_table_a({.system = System::kPeer,
                                           .num_experts = 320 * 320,
                                           .top_k = 1250,
                                           .heads = 10,
                                           .key_size = 128,
                                           .activation = Activation::kGelu});
constexpr SystemShape kDenseA = at_table_a({.system = System::kDenseMlp, .shared_size = 4 * 1024});

constexpr std::array kRows = {
    PresetRow{kDenseA, narrow(kDenseA, {.shared_size = 4 * 256})},
    PresetRow{kGShardA, narrow(kGShardA, {.num_experts = 32, .expert_size = 64}), {2, 4, 8, 16}},
    PresetRow{kDeepSeekA,
              narrow(kDeepSeekA, {.num_experts = 64, .expert_size = 32, .shared_size = 256}),
              {4, 8, 16, 32}},
    PresetRow{kPkmA,
              narrow(kPkmA, {.num_experts = 80 * 80, .top_k = 64, .key_size = 32}),
              {2500, 5000, 12500, 25000}},
    PresetRow{kPeerA,
              narrow(kPeerA, {.num_experts = 64 * 64, .top_k = 40, .key_size = 32}),
              {1250, 2500, 6250, 12500}},
};

std::vector<SystemPreset> routed_presets(const PresetRow& row) {
  const SystemShape& base = row.table_a;
  const std::string note(base.has_product_keys() ? kOwnKeys : "");
  std::vector<SystemPreset> presets;
  presets.push_back({"small", std::string(kSmall), row.small});
  presets.push_back({"table-a", fmt::format("paper Table A, L = 1024 and the smallest K{}", note), base});
  const auto add = [&](std::int64_t num_tokens, std::int64_t top_k, std::string_view source) {
    SystemShape shape = base;
    shape.num_tokens = num_tokens;
    shape.top_k = top_k;
    presets.push_back(
        {fmt::format("table-a-{}-{}", num_tokens, top_k), fmt::format("{}{}", source, note), shape});
  };
  for (const auto top_k : row.top_k) {
    add(kTableATokens.front(), top_k, kSweepK);
  }
  for (const auto num_tokens : kTableATokens) {
    if (num_tokens != kTableATokens.front()) {
      add(num_tokens, base.top_k, kSweepL);
    }
  }
  return presets;
}

std::vector<SystemPreset> dense_presets(const PresetRow& row) {
  const std::string source = "d and L of paper Table A; width 4 d, own choice";
  std::vector<SystemPreset> presets;
  presets.push_back({"small", std::string(kSmall), row.small});
  presets.push_back({"table-a", source, row.table_a});
  for (const auto num_tokens : kTableATokens) {
    SystemShape shape = row.table_a;
    shape.num_tokens = num_tokens;
    presets.push_back({fmt::format("table-a-{}", num_tokens), source, shape});
  }
  return presets;
}

}  // namespace

std::span<const SystemPreset> system_presets(System system) {
  static const std::map<System, std::vector<SystemPreset>> kPresets = [] {
    std::map<System, std::vector<SystemPreset>> all;
    for (const PresetRow& row : kRows) {
      const SystemShape& shape = row.table_a;
      all[shape.system] = shape.has_routing() ? routed_presets(row) : dense_presets(row);
    }
    return all;
  }();
  const auto found = kPresets.find(system);
  if (found == kPresets.end()) {
    throw InvalidArgument("system", to_string(system), "has its presets in presets()");
  }
  return found->second;
}

const SystemPreset& find_system_preset(System system, std::string_view name) {
  std::string known;
  for (const SystemPreset& preset : system_presets(system)) {
    if (preset.name == name) {
      return preset;
    }
    known += fmt::format("{}{}", known.empty() ? "" : ", ", preset.name);
  }
  throw InvalidArgument("preset", name, fmt::format("for {} must be one of {}", to_string(system), known));
}

}  // namespace moescope
