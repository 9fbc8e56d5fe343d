// Any safetensors file as a snapshot and as a trace: inputs that are valid, or an Error.
#include <cstdint>

#include "core/base/error.hpp"
#include "core/workload/workload_files.hpp"

namespace moescope {
namespace {

/// Made-up weights may be larger than the file: keep one run short.
bool is_small(const LayerShape& shape) {
  constexpr std::int64_t kMaxElements = 1 << 14;
  return shape.hidden_size <= kMaxElements && shape.num_experts() * shape.hidden_size <= kMaxElements;
}

LayerShape requested(std::int64_t hidden_size) {
  LayerShape shape;
  shape.num_tokens = shape.grid_rows = shape.grid_cols = shape.top_k = shape.shared_size = 0;
  shape.hidden_size = hidden_size;
  return shape;
}

template <class Complete, class Make>
void try_file(std::span<const std::byte> bytes, std::int64_t hidden_size, Complete complete, Make make) {
  try {
    ArrayFile file = parse_safetensors(bytes, "fuzz");
    if (is_small(complete(file, "fuzz", requested(hidden_size)))) {
      make(std::move(file), "fuzz", requested(hidden_size), 1, nullptr).validate();
    }
  } catch (const InternalError&) {
    throw;  // a bug of ours
  } catch (const Error&) {
  }
}

}  // namespace
}  // namespace moescope

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  moescope::try_file(bytes, 0, moescope::detail::complete_snapshot_shape, moescope::detail::make_snapshot);
  moescope::WorkloadSpec spec;
  spec.family = moescope::WorkloadSpec::Family::kTrace;
  spec.path = "fuzz";
  moescope::try_file(
      bytes, 8,
      [&](const auto& file, auto, const auto& shape) {
        return moescope::detail::complete_trace_shape(file, spec, shape);
      },
      [&](auto file, auto, const auto& shape, auto seed, auto experts) {
        return moescope::detail::make_trace(std::move(file), spec, shape, seed, experts);
      });
  return 0;
}
