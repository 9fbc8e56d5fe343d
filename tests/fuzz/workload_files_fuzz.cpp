// Any safetensors file as a snapshot and as a trace, of OmniMoE and of baselines: inputs that are valid, or
// an Error.
#include <cstdint>
#include <utility>

#include "core/base/error.hpp"
#include "core/systems/system_making.hpp"
#include "core/workload/workload_files.hpp"

namespace moescope {
namespace {

/// Made-up weights may be larger than the file: keep one run short.
constexpr std::int64_t kMaxElements = 1 << 14;

bool is_small(const LayerShape& shape) {
  return shape.hidden_size <= kMaxElements && shape.num_experts() * shape.hidden_size <= kMaxElements;
}

bool is_small(const SystemShape& shape) { return shape.weight_bytes() <= 64 * kMaxElements; }

LayerShape requested(std::int64_t hidden_size) {
  LayerShape shape;
  shape.num_tokens = shape.grid_rows = shape.grid_cols = shape.top_k = shape.shared_size = 0;
  shape.hidden_size = hidden_size;
  return shape;
}

SystemShape requested(System system, std::int64_t hidden_size) {
  SystemShape shape;
  shape.system = system;
  shape.hidden_size = hidden_size;
  shape.expert_size = shape.has_ffn_experts() ? 4 : 0;
  shape.shared_size = shape.has_dense_branch() ? 4 : 0;
  shape.key_size = shape.has_product_keys() ? 4 : 0;
  return shape;
}

/// `use` throws what an input is refused with.
template <class Use>
void attempt(std::span<const std::byte> bytes, Use use) {
  try {
    use(parse_safetensors(bytes, "fuzz"));
  } catch (const InternalError&) {
    throw;  // a bug of ours
  } catch (const Error&) {
  }
}

template <class Complete, class Make>
void try_system(std::span<const std::byte> bytes, const char* workload, const SystemShape& shape,
                Complete complete, Make make) {
  const WorkloadSpec spec = WorkloadSpec::parse(workload);
  attempt(bytes, [&](ArrayFile file) {
    if (is_small(complete(file, spec, shape))) {
      make(std::move(file), spec, shape, 1).validate();
    }
  });
}

void try_layer(std::span<const std::byte> bytes) {
  attempt(bytes, [](ArrayFile file) {
    if (is_small(detail::complete_snapshot_shape(file, "fuzz", requested(0)))) {
      detail::make_snapshot(std::move(file), "fuzz", requested(0), 1, nullptr).validate();
    }
  });
  attempt(bytes, [](ArrayFile file) {
    const WorkloadSpec spec = WorkloadSpec::parse("trace:fuzz#as=any");
    if (is_small(detail::complete_trace_shape(file, spec, requested(8)))) {
      detail::make_trace(std::move(file), spec, requested(8), 1, nullptr).validate();
    }
  });
}

}  // namespace
}  // namespace moescope

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  const auto bytes = std::as_bytes(std::span(data, size));
  try_layer(bytes);
  for (const System system : {System::kGShard, System::kDeepSeekMoe, System::kPeer, System::kDenseMlp}) {
    try_system(bytes, "trace:fuzz#as=any", requested(system, 8), detail::complete_system_trace,
               [](ArrayFile file, const WorkloadSpec& spec, const SystemShape& shape, std::uint64_t seed) {
                 return detail::make_system_trace(std::move(file), spec, shape, seed);
               });
  }
  for (const System system : {System::kGShard, System::kDeepSeekMoe, System::kDenseMlp}) {
    try_system(bytes, "snapshot:fuzz", requested(system, 0), detail::complete_system_snapshot,
               detail::make_system_snapshot);
  }
  return 0;
}
