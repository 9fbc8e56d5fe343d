#include "core/workload/trace_writer.hpp"

#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "core/base/error.hpp"
#include "core/files/output_file.hpp"

namespace moescope {
namespace {

/// Experts per token, the same for all.
std::int64_t require_rectangular(const Routing& routing) {
  routing.validate();
  if (routing.num_pairs() == 0) {
    throw InvalidArgument("routing", "0 pairs", "an empty routing cannot be recorded");
  }
  const auto top_k = std::ssize(routing.ids_of(0));
  for (std::int64_t token = 1; token < routing.num_tokens; ++token) {
    if (std::ssize(routing.ids_of(token)) != top_k) {
      throw InvalidArgument(
          fmt::format("routing, experts of token {}", token), fmt::to_string(routing.ids_of(token).size()),
          fmt::format("a trace needs the same number for every token; token 0 has {}", top_k));
    }
  }
  return top_k;
}

std::string trace_header(const Routing& routing, std::int64_t top_k, std::string_view system,
                         std::int64_t heads) {
  const auto entry = [&](const char* dtype, std::int64_t begin) {
    return nlohmann::ordered_json{{"dtype", dtype},
                                  {"shape", {routing.num_tokens, top_k}},
                                  {"data_offsets", {begin, begin + 4 * routing.num_pairs()}}};
  };
  const nlohmann::ordered_json header{{"__metadata__",
                                       {{"system", system},
                                        {"grid_rows", fmt::to_string(routing.grid_rows)},
                                        {"grid_cols", fmt::to_string(routing.grid_cols)},
                                        {"num_experts", fmt::to_string(routing.num_experts())},
                                        {"top_k", fmt::to_string(top_k)},
                                        {"heads", fmt::to_string(heads)}}},
                                      {"expert_ids", entry("I32", 0)},
                                      {"gates", entry("F32", 4 * routing.num_pairs())}};
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // data starts aligned, as the format recommends
  return text;
}

void put(std::string& content, const void* data, std::size_t bytes) {
  content.append(static_cast<const char*>(data), bytes);
}

}  // namespace

void require_trace_name(const std::filesystem::path& file) {
  if (file.extension() != ".safetensors") {
    throw InvalidArgument("trace file", file.string(), "must end in .safetensors");
  }
}

void write_trace(const Routing& routing, const std::filesystem::path& file, std::string_view system,
                 std::int64_t heads) {
  require_trace_name(file);
  const std::string header = trace_header(routing, require_rectangular(routing), system, heads);
  const std::uint64_t header_bytes = header.size();
  std::string content;
  content.reserve(sizeof(header_bytes) + header.size() + 8 * routing.expert_ids.size());
  put(content, &header_bytes, sizeof(header_bytes));
  content += header;
  put(content, routing.expert_ids.data(), routing.expert_ids.size() * sizeof(std::int32_t));
  put(content, routing.gates.data(), routing.gates.size() * sizeof(float));
  OutputFile("trace file", file).write(content);
}

}  // namespace moescope
