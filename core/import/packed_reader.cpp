// Ids with their weights in one int32, (id << 16) | bits of a bfloat16 (FlashInfer, TensorRT-LLM). Any int32
// may be meant so: never recognised, always asked for.
#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "core/base/error.hpp"
#include "core/import/arrays.hpp"
#include "core/import/rows.hpp"
#include "core/layer/dtype.hpp"

namespace moescope::detail {

RawRouting read_packed(const ImportSource& source, const ImportOptions& options) {
  RawRouting routing;
  std::vector<std::int64_t> packed;
  if (is_flat(source)) {
    packed = flat_integers(source, options);
  } else if (source.arrays) {
    routing = read_ids(source, options);
    if (!routing.gates.empty()) {
      throw FileError(source.path, "gates", "stand beside ids that are to hold their own weights");
    }
    packed = std::move(routing.ids);
  } else {
    throw InvalidArgument("format", "packed", fmt::format("{} is no array", source.path));
  }
  routing.ids.clear();
  for (std::size_t i = 0; i < packed.size(); ++i) {
    const std::int64_t word = packed[i];
    if (word < -(std::int64_t{1} << 31) || word >= (std::int64_t{1} << 32)) {
      throw FileError(source.path, fmt::format("element {}", i), fmt::format("{}: must be 32 bits", word));
    }
    const auto bits = static_cast<std::uint32_t>(word & 0xffffffff);
    const float weight = to_float(Bf16{static_cast<std::uint16_t>(bits & 0xffffU)});
    if (!std::isfinite(weight)) {
      throw FileError(
          source.path, fmt::format("element {}", i),
          fmt::format("{:#010x}: its lower half is the bfloat16 {}, must be finite", bits, weight));
    }
    routing.ids.push_back(bits >> 16);
    routing.gates.push_back(weight);
  }
  if (is_flat(source)) {
    shape_flat(source, std::move(routing.ids), options, routing);
  }
  routing.notes.emplace_back("ids are the upper 16 bits, gates the lower as bfloat16");
  return routing;
}

}  // namespace moescope::detail
