#include <fmt/format.h>

#include <array>

#include "core/base/error.hpp"
#include "core/layer/layer_shape.hpp"

namespace moescope {
namespace {

// Shapes in the order of LayerShape: L, d, grid, K, width of the shared MLP.

/// OmniMoE row of paper Table A: d = 1024, N = 320^2, shared ffn 1024, bf16.
constexpr LayerShape table_a(std::int64_t num_tokens, std::int64_t top_k) {
  return {num_tokens, 1024, 320, 320, top_k, 1024};
}
constexpr LayerShape table_b(std::int64_t hidden_size) { return {1024, hidden_size, 320, 320, 512, 1024}; }

constexpr std::string_view kTableAK = "paper Table A, sweep over K at L = 1024";
constexpr std::string_view kTableAL = "paper Table A, sweep over L at K = 512";
constexpr std::string_view kTableB = "width from paper Table B; grid, K and shared width as in Table A";
constexpr std::string_view kSnapshot = "trained layer, shape of its snapshot (byte-level language model)";
constexpr std::string_view kTest = "own choice, for tests and first runs";

constexpr std::array kPresets = {
    // The two names that every system has (system_presets).
    Preset{"small", "own choice: the small_layer2 snapshot's layer on 1024 tokens",
           LayerShape{1024, 256, 64, 64, 32, 256}},
    Preset{"table-a", "paper Table A, L = 1024 and the smallest K", table_a(1024, 512)},
    Preset{"table-a-1024-512", kTableAK, table_a(1024, 512)},
    Preset{"table-a-1024-1024", kTableAK, table_a(1024, 1024)},
    Preset{"table-a-1024-2048", kTableAK, table_a(1024, 2048)},
    Preset{"table-a-1024-4096", kTableAK, table_a(1024, 4096)},
    Preset{"table-a-2048-512", kTableAL, table_a(2048, 512)},
    Preset{"table-a-4096-512", kTableAL, table_a(4096, 512)},
    Preset{"table-a-8192-512", kTableAL, table_a(8192, 512)},
    Preset{"table-a-16384-512", kTableAL, table_a(16384, 512)},
    Preset{"table-b-768", kTableB, table_b(768)},
    Preset{"table-b-1024", kTableB, table_b(1024)},
    Preset{"table-b-1536", kTableB, table_b(1536)},
    Preset{"table-b-2048", kTableB, table_b(2048)},
    Preset{"small-layer2", kSnapshot, LayerShape{8192, 256, 64, 64, 32, 256}},
    Preset{"tablea-layer2", kSnapshot, table_a(4096, 512)},
    Preset{"million", "own choice: a million experts, grid 1024 x 1024",
           LayerShape{1024, 256, 1024, 1024, 512, 0}},
    Preset{"tiny", kTest, LayerShape{64, 32, 16, 16, 8, 32}},
    Preset{"tiny-tall", kTest, LayerShape{48, 8, 48, 16, 12, 0}},
};

}  // namespace

std::span<const Preset> presets() { return kPresets; }

const Preset& find_preset(std::string_view name) {
  std::string known;
  for (const auto& preset : kPresets) {
    if (preset.name == name) {
      return preset;
    }
    known += known.empty() ? "" : ", ";
    known += preset.name;
  }
  throw InvalidArgument("preset", name, fmt::format("must be one of {}", known));
}

}  // namespace moescope
