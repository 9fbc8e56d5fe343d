#include "core/import/snapshot_writer.hpp"

#include <fmt/format.h>

#include <vector>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/output_file.hpp"
#include "core/files/safetensors_writer.hpp"

namespace moescope {
namespace {

void require_array(const std::map<std::string, FileArray>& arrays, const std::string& name,
                   const std::vector<std::int64_t>& extents) {
  const auto found = arrays.find(name);
  if (found == arrays.end() || found->second.shape != extents) {
    throw InvalidArgument(name, found == arrays.end() ? "absent" : detail::shape_text(found->second.shape),
                          fmt::format("must be {}", detail::shape_text(extents)));
  }
}

}  // namespace

void write_system_snapshot(const SystemShape& shape, const std::map<std::string, FileArray>& arrays,
                           const std::map<std::string, std::string>& more,
                           const std::filesystem::path& file) {
  if (file.extension() != ".safetensors") {
    throw InvalidArgument("output", file.string(), "a snapshot must end in .safetensors");
  }
  shape.validate();
  const std::int64_t d = shape.hidden_size;
  require_array(arrays, "hidden_states", {shape.num_tokens, d});
  require_array(arrays, "router.weight", {shape.num_experts, d});
  require_array(arrays, "experts.gate_up", {shape.num_experts, 2 * shape.expert_size, d});
  require_array(arrays, "experts.down", {shape.num_experts, d, shape.expert_size});
  if (shape.shared_size > 0) {
    require_array(arrays, "shared.gate.weight", {shape.shared_size, d});
    require_array(arrays, "shared.up.weight", {shape.shared_size, d});
    require_array(arrays, "shared.down.weight", {d, shape.shared_size});
  }
  std::map<std::string, std::string> metadata = more;
  metadata["system"] = to_string(shape.system);
  metadata["top_k"] = fmt::to_string(shape.top_k);
  metadata["activation"] = to_string(shape.activation);
  metadata["gates"] = to_string(shape.gate_mode);
  OutputFile("output", file).write(safetensors_content(arrays, metadata));
}

}  // namespace moescope
