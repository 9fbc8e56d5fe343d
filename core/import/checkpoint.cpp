#include "core/import/checkpoint.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/json_field.hpp"
#include "core/files/json_text.hpp"
#include "core/files/regular_file.hpp"
#include "core/layer/dtype.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kSingle = "model.safetensors";

std::string name_of(std::string_view pattern, std::int64_t layer, std::int64_t expert = 0) {
  return fmt::format(fmt::runtime(pattern), layer, expert);
}

/// Tensor to the file in the folder that holds it.
std::map<std::string, fs::path> read_index(const fs::path& folder) {
  std::map<std::string, fs::path> where;
  const fs::path index = folder / kIndex;
  if (!file_exists(index)) {
    if (!file_exists(folder / kSingle)) {
      throw FileError(folder.string(), "", fmt::format("holds neither {} nor {}", kIndex, kSingle));
    }
    for (const auto& [name, array] : read_safetensors_header(folder / kSingle).arrays) {
      where.emplace(name, folder / kSingle);
    }
    return where;
  }
  constexpr std::uint64_t kMostIndexBytes = std::uint64_t{256} << 20;  // a name and a shard for each tensor
  const std::string path = index.string();
  const auto document = parse_json<nlohmann::json>(read_text(index, kMostIndexBytes), {path, ""});
  for (const auto& [name, shard] : JsonField(document, path).member("weight_map").members()) {
    const std::string file = shard.text();
    // A shard lies beside its index: a name that leads elsewhere is no checkpoint's.
    if (file.empty() || file.find('/') != std::string::npos || file == "." || file == "..") {
      shard.fail("must be the name of a file beside the index");
    }
    where.emplace(name, folder / file);
  }
  return where;
}

/// The tensors of one layer, taken out one by one.
class LayerTensors {
 public:
  LayerTensors(const fs::path& folder, const ModelConfig& config, std::int64_t layer)
      : folder_(folder), config_(config), layer_(layer) {
    where_ = read_index(folder);
  }

  /// Names that begin with this layer's prefix of the MoE block.
  std::vector<std::string> names() const {
    const std::string router = name_of(config_.router, layer_);
    const std::string prefix = router.substr(0, router.size() - std::string_view("gate.weight").size());
    std::vector<std::string> names;
    for (const auto& [name, file] : where_) {
      if (name.starts_with(prefix)) {
        names.push_back(name);
      }
    }
    return names;
  }

  void load(const std::set<std::string>& wanted) {
    std::set<fs::path> files;
    for (const std::string& name : wanted) {
      const auto found = where_.find(name);
      if (found == where_.end()) {
        throw FileError(folder_.string(), name, fmt::format("missing; {}", found_text()));
      }
      files.insert(found->second);
    }
    for (const fs::path& file : files) {
      ArrayFile part = read_safetensors(file, [&](std::string_view name) {
        const auto at = wanted.find(std::string(name));
        return at != wanted.end() && where_.at(*at) == file;
      });
      for (auto& [name, array] : part.arrays) {
        tensors_.emplace(name, std::move(array));
      }
      if (!part.unreadable.empty()) {
        throw FileError(part.unreadable.begin()->second);
      }
    }
  }

  /// Throws FileError unless the tensor has this shape and the type of the first.
  FileArray take(const std::string& name, const std::vector<std::int64_t>& shape) {
    const std::string path = where_.at(name).string();
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      throw FileError(path, name, fmt::format("missing, though {} says it is here", kIndex));
    }
    FileArray array = std::move(found->second);
    tensors_.erase(found);
    if (array.shape != shape) {
      throw FileError(path, name,
                      fmt::format("shape {}: must be {} by {}", detail::shape_text(array.shape),
                                  detail::shape_text(shape), config_.path));
    }
    if (array.dtype != "bf16" && array.dtype != "f16" && array.dtype != "f32") {
      throw FileError(path, name, fmt::format("dtype {}: must be bf16, f16 or f32", array.dtype));
    }
    return array;
  }

 private:
  /// What of the layer is there, when something is missing.
  std::string found_text() const {
    const auto there = names();
    if (there.empty()) {
      return fmt::format("nothing of layer {} is there", layer_);
    }
    constexpr std::size_t kMost = 3;
    const auto count = static_cast<std::ptrdiff_t>(std::min(kMost, there.size()));
    return fmt::format(
        "of layer {} there are {} tensors, {}, ...", layer_, there.size(),
        detail::printable(fmt::format("{}", fmt::join(there.begin(), there.begin() + count, ", ")), 240));
  }

  fs::path folder_;
  const ModelConfig& config_;
  std::int64_t layer_;
  std::map<std::string, fs::path> where_;
  std::map<std::string, FileArray> tensors_;
};

/// Parts one after the other, of one dtype.
class Stack {
 public:
  explicit Stack(std::vector<std::int64_t> shape) : shape_(std::move(shape)) {}

  void add(const FileArray& part, const std::string& path, const std::string& part_name) {
    if (!array_.dtype.empty() && array_.dtype != part.dtype) {
      throw FileError(path, part_name,
                      fmt::format("dtype {}: tensors before are {}", part.dtype, array_.dtype));
    }
    array_.dtype = part.dtype;
    array_.bytes.insert(array_.bytes.end(), part.bytes.begin(), part.bytes.end());
  }
  FileArray take() {
    array_.shape = shape_;
    return std::move(array_);
  }

 private:
  std::vector<std::int64_t> shape_;
  FileArray array_;
};

/// Exact for a power of two, short of overflow, which is refused.
void scale_weights(FileArray& array, double scale, const std::string& path) {
  const HostTensor values = array.to_tensor(Dtype::kF32, path, "experts.down");
  const auto view = values.f32();
  for (std::int64_t i = 0; i < view.size(); ++i) {
    const float scaled = view.data[i] * static_cast<float>(scale);
    if (!std::isfinite(scaled)) {
      throw FileError(path, fmt::format("experts.down, element {}", i),
                      fmt::format("{} * {}: must be finite", view.data[i], scale));
    }
    if (array.dtype == "f32") {
      std::memcpy(array.bytes.data() + 4 * i, &scaled, 4);
    } else if (array.dtype == "bf16") {
      const Bf16 rounded = to_bf16(scaled);
      std::memcpy(array.bytes.data() + 2 * i, &rounded.bits, 2);
    } else {
      throw FileError(path, "routed_scaling_factor",
                      fmt::format("{}: does not fold into f16 weights", scale));
    }
  }
}

void require_moe_layer(const ModelConfig& config, std::int64_t layer) {
  if (layer < 0 || layer >= config.num_layers) {
    throw InvalidArgument("layer", fmt::to_string(layer),
                          fmt::format("{} has layers 0 to {}", config.path, config.num_layers - 1));
  }
  if (std::ranges::find(config.dense_layers, layer) != config.dense_layers.end()) {
    throw InvalidArgument("layer", fmt::to_string(layer),
                          fmt::format("is without experts by {}, as are {}", config.path,
                                      fmt::join(config.dense_layers, ", ")));
  }
}

}  // namespace

CheckpointLayer read_checkpoint_layer(const fs::path& folder, std::int64_t layer,
                                      const std::vector<std::string>& ignored) {
  CheckpointLayer result;
  result.config = read_model_config(folder);
  const ModelConfig& config = result.config;
  require_moe_layer(config, layer);
  const SystemShape& shape = config.layer;
  const std::int64_t d = shape.hidden_size;
  LayerTensors tensors(folder, config, layer);

  const std::vector<std::string> present = tensors.names();
  if (shape.num_experts > std::ssize(present)) {  // before a name is made for each
    throw FileError(
        config.path, "num_experts",
        fmt::format("{}: of layer {} the folder has {} tensors", shape.num_experts, layer, present.size()));
  }
  std::set<std::string> wanted = {name_of(config.router, layer)};
  for (std::int64_t e = 0; e < shape.num_experts; ++e) {
    for (const std::string_view pattern : {config.gate, config.up, config.down}) {
      const std::string name = name_of(pattern, layer, e);
      wanted.insert(name);
    }
  }
  if (!config.shared_gate.empty()) {
    for (const std::string_view pattern : {config.shared_gate, config.shared_up, config.shared_down}) {
      wanted.insert(name_of(pattern, layer));
    }
  }
  for (const std::string& name : present) {
    const auto named = [&](const std::string& part) { return name.find(part) != std::string::npos; };
    if (wanted.contains(name)) {
      continue;
    }
    if (!std::ranges::any_of(ignored, named)) {
      throw FileError(
          folder.string(), detail::printable(name),
          "is part of the layer and nothing here computes with it; --ignore with a part of its name "
          "leaves it out, and the output is another");
    }
    result.notes.push_back(fmt::format("left out as asked: {}", detail::printable(name)));
  }
  tensors.load(wanted);

  const std::string path = folder.string();
  result.arrays["router.weight"] = tensors.take(name_of(config.router, layer), {shape.num_experts, d});
  Stack gate_up({shape.num_experts, 2 * shape.expert_size, d});
  Stack down({shape.num_experts, d, shape.expert_size});
  for (std::int64_t e = 0; e < shape.num_experts; ++e) {
    for (const std::string_view pattern : {config.gate, config.up}) {
      const std::string name = name_of(pattern, layer, e);
      gate_up.add(tensors.take(name, {shape.expert_size, d}), path, name);
    }
    const std::string name = name_of(config.down, layer, e);
    down.add(tensors.take(name, {d, shape.expert_size}), path, name);
  }
  result.arrays["experts.gate_up"] = gate_up.take();
  result.arrays["experts.down"] = down.take();
  if (config.routed_scale != 1) {
    scale_weights(result.arrays["experts.down"], config.routed_scale, path);
    result.notes.push_back(
        fmt::format("routed_scaling_factor {} is folded into experts.down", config.routed_scale));
  }
  if (!config.shared_gate.empty()) {
    result.arrays["shared.gate.weight"] =
        tensors.take(name_of(config.shared_gate, layer), {shape.shared_size, d});
    result.arrays["shared.up.weight"] =
        tensors.take(name_of(config.shared_up, layer), {shape.shared_size, d});
    result.arrays["shared.down.weight"] =
        tensors.take(name_of(config.shared_down, layer), {d, shape.shared_size});
  }
  return result;
}

}  // namespace moescope
