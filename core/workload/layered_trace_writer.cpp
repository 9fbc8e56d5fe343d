#include <map>
#include <span>
#include <string>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/npz_writer.hpp"
#include "core/files/output_file.hpp"
#include "core/workload/layered_trace.hpp"

namespace moescope {
namespace {

template <class T>
FileArray narrow_ids(const LayeredTrace& trace, std::vector<std::int64_t> shape) {
  const std::vector<T> ids(trace.expert_ids.begin(), trace.expert_ids.end());
  return file_array(std::span<const T>(ids), std::move(shape));
}

/// In the narrowest type that holds every id of the layer.
FileArray ids_array(const LayeredTrace& trace, std::vector<std::int64_t> shape) {
  if (trace.num_experts <= 1 << 8) {
    return narrow_ids<std::uint8_t>(trace, std::move(shape));
  }
  if (trace.num_experts <= 1 << 16) {
    return narrow_ids<std::uint16_t>(trace, std::move(shape));
  }
  return file_array(std::span<const std::int32_t>(trace.expert_ids), std::move(shape));
}

}  // namespace

void require_layered_trace_name(const std::filesystem::path& file) {
  if (file.extension() != ".npz") {
    throw InvalidArgument("output", file.string(), "a trace of several layers must end in .npz");
  }
}

void write_layered_trace(const LayeredTrace& trace, const std::filesystem::path& file) {
  require_layered_trace_name(file);
  trace.validate(file.string());
  const std::vector<std::int64_t> shape = {std::ssize(trace.layers), trace.num_tokens, trace.top_k};
  std::map<std::string, FileArray> arrays;
  arrays["expert_ids"] = ids_array(trace, shape);
  if (!trace.gates.empty()) {
    arrays["gates"] = file_array(std::span<const float>(trace.gates), shape);
  }
  arrays["layers"] = file_array(std::span<const std::int64_t>(trace.layers), {std::ssize(trace.layers)});
  const auto add_number = [&](const char* name, std::int64_t value) {
    if (value != 0) {
      arrays[name] = file_array(std::span<const std::int64_t>(&value, 1), {});
    }
  };
  const auto add_text = [&](const char* name, const std::string& text) {
    if (!text.empty()) {
      arrays[name] = text_array(text);
    }
  };
  add_number("num_experts", trace.num_experts);
  add_number("hidden_size", trace.hidden_size);
  add_number("expert_size", trace.expert_size);
  add_number("shared_size", trace.shared_size);
  // A flat router is a grid of one row.
  add_number("grid_rows", trace.grid_rows != 0 ? trace.grid_rows : 1);
  add_number("grid_cols", trace.grid_cols != 0 ? trace.grid_cols : trace.num_experts);
  add_text("system", trace.system);
  add_text("gate_mode", trace.gate_mode);
  add_text("source", trace.source);
  OutputFile("output", file).write(npz_content(arrays));
}

}  // namespace moescope
