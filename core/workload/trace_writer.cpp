#include "core/workload/trace_writer.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>

#include "core/base/error.hpp"

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

std::string trace_header(const Routing& routing, std::int64_t top_k) {
  const auto entry = [&](const char* dtype, std::int64_t begin) {
    return nlohmann::ordered_json{{"dtype", dtype},
                                  {"shape", {routing.num_tokens, top_k}},
                                  {"data_offsets", {begin, begin + 4 * routing.num_pairs()}}};
  };
  const nlohmann::ordered_json header{{"__metadata__",
                                       {{"grid_rows", fmt::to_string(routing.grid_rows)},
                                        {"grid_cols", fmt::to_string(routing.grid_cols)},
                                        {"top_k", fmt::to_string(top_k)}}},
                                      {"expert_ids", entry("I32", 0)},
                                      {"gates", entry("F32", 4 * routing.num_pairs())}};
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // data starts aligned, as the format recommends
  return text;
}

void put(std::ofstream& stream, const void* data, std::size_t bytes) {
  stream.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
}

}  // namespace

void write_trace(const Routing& routing, const std::filesystem::path& file) {
  if (file.extension() != ".safetensors") {
    throw InvalidArgument("trace file", file.string(), "must end in .safetensors");
  }
  const std::string header = trace_header(routing, require_rectangular(routing));
  // In the same folder, so that the rename cannot cross file systems; the process id keeps two writers apart.
  const std::filesystem::path partial = fmt::format("{}.{}.partial", file.string(), ::getpid());
  std::error_code error;
  {
    std::ofstream stream(partial, std::ios::binary | std::ios::trunc);
    const std::uint64_t header_bytes = header.size();
    put(stream, &header_bytes, sizeof(header_bytes));
    put(stream, header.data(), header.size());
    put(stream, routing.expert_ids.data(), routing.expert_ids.size() * sizeof(std::int32_t));
    put(stream, routing.gates.data(), routing.gates.size() * sizeof(float));
    stream.close();
    if (!stream) {
      std::filesystem::remove(partial, error);
      throw FileError(file.string(), "", "cannot be written");
    }
  }
  std::filesystem::rename(partial, file, error);
  if (error) {
    const std::string why = error.message();
    std::filesystem::remove(partial, error);
    throw FileError(file.string(), "", fmt::format("cannot be written: {}", why));
  }
}

}  // namespace moescope
