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

SystemShape table_a(System system) {
  SystemShape shape;
  shape.system = system;
  shape.num_tokens = 1024;
  shape.hidden_size = 1024;
  switch (system) {
    case System::kGShard:
      shape.num_experts = 128;
      shape.expert_size = 512;
      shape.top_k = 2;
      break;
    case System::kDeepSeekMoe:
      shape.num_experts = 256;
      shape.expert_size = 256;
      shape.shared_size = 1024;
      shape.top_k = 4;
      shape.gate_mode = GateMode::kProbability;
      break;
    case System::kPkm:
      shape.num_experts = 444 * 444;
      shape.top_k = 2500;
      shape.heads = 4;
      shape.key_size = 128;
      break;
    case System::kPeer:
      shape.num_experts = 320 * 320;
      shape.top_k = 1250;
      shape.heads = 10;
      shape.key_size = 128;
      shape.activation = Activation::kGelu;
      break;
    case System::kDenseMlp:
      shape.shared_size = 4 * shape.hidden_size;
      break;
    case System::kOmniMoe:
      throw InternalError("omnimoe's presets are LayerShapes");
  }
  return shape;
}

SystemShape small(System system) {
  SystemShape shape = table_a(system);
  shape.hidden_size = 256;
  switch (system) {
    case System::kGShard:
      shape.num_experts = 32;
      shape.expert_size = 64;
      break;
    case System::kDeepSeekMoe:
      shape.num_experts = 64;
      shape.expert_size = 32;
      shape.shared_size = 256;
      break;
    case System::kPkm:
      shape.num_experts = 80 * 80;
      shape.top_k = 64;
      shape.key_size = 32;
      break;
    case System::kPeer:
      shape.num_experts = 64 * 64;
      shape.top_k = 40;
      shape.key_size = 32;
      break;
    case System::kDenseMlp:
      shape.shared_size = 4 * shape.hidden_size;
      break;
    case System::kOmniMoe:
      break;
  }
  return shape;
}

std::array<std::int64_t, 4> top_k_sweep(System system) {
  switch (system) {
    case System::kGShard:
      return {2, 4, 8, 16};
    case System::kDeepSeekMoe:
      return {4, 8, 16, 32};
    case System::kPkm:
      return {2500, 5000, 12500, 25000};
    case System::kPeer:
      return {1250, 2500, 6250, 12500};
    default:
      throw InternalError(fmt::format("{} has no sweep over K", to_string(system)));
  }
}

std::vector<SystemPreset> routed_presets(System system) {
  const SystemShape base = table_a(system);
  const std::string note(base.has_product_keys() ? kOwnKeys : "");
  std::vector<SystemPreset> presets;
  presets.push_back({"small", std::string(kSmall), small(system)});
  presets.push_back({"table-a", fmt::format("paper Table A, L = 1024 and the smallest K{}", note), base});
  const auto add = [&](std::int64_t num_tokens, std::int64_t top_k, std::string_view source) {
    SystemShape shape = base;
    shape.num_tokens = num_tokens;
    shape.top_k = top_k;
    presets.push_back(
        {fmt::format("table-a-{}-{}", num_tokens, top_k), fmt::format("{}{}", source, note), shape});
  };
  for (const auto top_k : top_k_sweep(system)) {
    add(kTableATokens.front(), top_k, kSweepK);
  }
  for (const auto num_tokens : kTableATokens) {
    if (num_tokens != kTableATokens.front()) {
      add(num_tokens, base.top_k, kSweepL);
    }
  }
  return presets;
}

std::vector<SystemPreset> dense_presets() {
  const std::string source = "d and L of paper Table A; width 4 d, own choice";
  std::vector<SystemPreset> presets;
  presets.push_back({"small", std::string(kSmall), small(System::kDenseMlp)});
  presets.push_back({"table-a", source, table_a(System::kDenseMlp)});
  for (const auto num_tokens : kTableATokens) {
    SystemShape shape = table_a(System::kDenseMlp);
    shape.num_tokens = num_tokens;
    presets.push_back({fmt::format("table-a-{}", num_tokens), source, shape});
  }
  return presets;
}

}  // namespace

std::span<const SystemPreset> system_presets(System system) {
  static const std::map<System, std::vector<SystemPreset>> kPresets = [] {
    std::map<System, std::vector<SystemPreset>> all;
    for (const System baseline : systems()) {
      if (baseline != System::kOmniMoe) {
        all[baseline] = baseline == System::kDenseMlp ? dense_presets() : routed_presets(baseline);
      }
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
