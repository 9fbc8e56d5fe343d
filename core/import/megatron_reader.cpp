// Megatron-Core's router trace (--moe-routing-trace-path): router_trace_rank{r}.jsonl, a record for each
// step, block and layer; beside it logits_rank{r}.bin, bfloat16, when it was told to capture logits.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/json_field.hpp"
#include "core/files/json_text.hpp"
#include "core/files/regular_file.hpp"
#include "core/import/megatron.hpp"
#include "core/import/reader.hpp"
#include "core/layer/dtype.hpp"

namespace moescope::detail {
namespace {

namespace fs = std::filesystem;

/// One record: a layer's tokens of one step on one rank.
struct Record {
  std::int64_t step = 0;
  std::int64_t rank = 0;
  std::int64_t num_tokens = 0;
  std::vector<std::int64_t> ids;
  std::vector<float> gates;
};

/// How recorded ids and logits agree.
struct Agreement {
  std::int64_t rows = 0;
  std::int64_t equal = 0;
  std::int64_t equal_but_ties = 0;
};

class MegatronParser {
 public:
  MegatronParser(const ImportOptions& options, const SidecarReader& sidecar)
      : options_(options), sidecar_(sidecar) {}

  void parse(const std::string& path, std::string_view text) {
    std::int64_t number = 0;
    while (!text.empty()) {
      const auto end = text.find('\n');
      const std::string_view line = text.substr(0, end);
      ++number;
      if (line.find_first_not_of(" \t\r") != std::string_view::npos) {
        parse_record(path, fmt::format("line {}", number), line);
      }
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    }
  }

  RawRouting routing(const std::string& path) {
    if (layers_.empty()) {
      throw FileError(path, "", fmt::format("holds no records of block {}{}", options_.block, others()));
    }
    RawRouting routing;
    routing.top_k = top_k_;
    routing.num_experts = num_experts_;
    routing.num_layers = std::ssize(layers_);
    for (auto& [layer, records] : layers_) {
      std::stable_sort(records.begin(), records.end(), [](const Record& a, const Record& b) {
        return std::pair(a.step, a.rank) < std::pair(b.step, b.rank);
      });
      require_same_tokens(path, layer, records);
      routing.layers.push_back(layer);
      for (const Record& record : records) {
        routing.ids.insert(routing.ids.end(), record.ids.begin(), record.ids.end());
        routing.gates.insert(routing.gates.end(), record.gates.begin(), record.gates.end());
      }
    }
    routing.num_tokens = std::ssize(routing.ids) / (routing.num_layers * top_k_);
    routing.notes.push_back(fmt::format("Megatron: {} records of block {}, tokens by step, then rank{}",
                                        num_records_, options_.block, others()));
    if (with_logits_) {
      routing.gate_mode = to_string(mode());
      routing.notes.push_back(
          fmt::format("gates {} of the logits beside it; recorded ids are their top {} in {} of {} rows, in "
                      "{} more but for "
                      "equal logits{}",
                      routing.gate_mode, top_k_, agreement_.equal, agreement_.rows, agreement_.equal_but_ties,
                      options_.scores ? "" : " (--scores names other gates)"));
    }
    return routing;
  }

 private:
  ScoreMode mode() const { return options_.scores.value_or(ScoreMode::kSoftmax); }

  std::string others() const {
    std::string text;
    for (const auto& [block, count] : left_out_) {
      text += fmt::format("; left out: {} records of block {} (--block {})", count, block, block);
    }
    return text;
  }

  void parse_record(const std::string& path, const std::string& line_name, std::string_view line) {
    const auto document = parse_json<nlohmann::json>(line, {path, line_name});
    const std::string place = path + ": " + line_name;
    const JsonField root(document, place);
    std::string block = root.has("block") ? root.member("block").text() : "decoder";
    if (root.has("mtp_idx")) {
      block += fmt::to_string(root.member("mtp_idx").integer(0, kLimit - 1));
    }
    if (block != options_.block) {
      ++left_out_[printable(block)];
      return;
    }
    ++num_records_;
    const std::int64_t layer = root.member("layer").integer(0, kLimit - 1);
    Record record;
    record.step = root.member("step").integer(0, kLimit - 1);
    record.rank = root.member("rank").integer(0, kLimit - 1);
    if (!seen_.insert({layer, record.step, record.rank}).second) {
      root.member("step").fail(
          fmt::format("layer {} of this step and rank {} stands there twice", layer, record.rank));
    }
    read_ids(root, record);
    read_logits(root, path, record);
    layers_[layer].push_back(std::move(record));
  }

  void read_ids(const JsonField& root, Record& record) {
    record.num_tokens = root.member("num_tokens").integer(0, kLimit - 1);
    const std::int64_t k = root.member("topk").integer(1, kLimit - 1);
    if (top_k_ != 0 && k != top_k_) {
      root.member("topk").fail(fmt::format("must be {}, as before", top_k_));
    }
    top_k_ = k;
    const std::vector<JsonField> rows = root.member("top_indices").elements();
    if (std::ssize(rows) != record.num_tokens) {
      throw FileError(root_name(root), "top_indices",
                      fmt::format("{} rows, num_tokens is {}", rows.size(), record.num_tokens));
    }
    for (const JsonField& row : rows) {
      const std::vector<JsonField> ids = row.elements();
      if (std::ssize(ids) != k) {
        row.fail(fmt::format("must be topk = {} experts", k));
      }
      for (const JsonField& id : ids) {
        record.ids.push_back(id.integer(-kLimit, kLimit - 1));
      }
    }
  }

  /// "FILE: line 3", which every complaint about this record begins with.
  static std::string root_name(const JsonField& root) { return std::string(root.file()); }

  void read_logits(const JsonField& root, const std::string& path, Record& record) {
    const bool has = root.has("logit_offset");
    if (num_records_ > 1 && has != with_logits_) {
      throw FileError(root_name(root), "logit_offset",
                      has ? "records before have no logits" : "missing; records before have logits");
    }
    with_logits_ = has;
    if (!has) {
      return;
    }
    const std::vector<JsonField> shape = root.member("logit_shape").elements();
    if (shape.size() != 2 || shape[0].integer(0, kLimit - 1) != record.num_tokens) {
      root.member("logit_shape").fail(fmt::format("must be [{}, experts]", record.num_tokens));
    }
    const std::int64_t experts = shape[1].integer(1, kLimit - 1);
    if (experts < top_k_ || (num_experts_ != 0 && experts != num_experts_)) {
      root.member("logit_shape")
          .fail(num_experts_ != 0 ? fmt::format("must be of {} experts, as before", num_experts_)
                                  : fmt::format("must be of at least topk = {} experts", top_k_));
    }
    num_experts_ = experts;
    const std::int64_t bytes = root.member("logit_bytes").integer(0, std::int64_t{1} << 60);
    // Both factors are below 2^31.
    if (bytes != 2 * record.num_tokens * experts) {
      root.member("logit_bytes")
          .fail(fmt::format("logit_shape needs {} of bfloat16", 2 * record.num_tokens * experts));
    }
    const std::int64_t offset = root.member("logit_offset").integer(0, std::int64_t{1} << 60);
    const std::vector<std::byte> data =
        sidecar_(path, fmt::format("logits_rank{}.bin", record.rank), static_cast<std::uint64_t>(offset),
                 static_cast<std::uint64_t>(bytes));
    take_gates(root, data, experts, record);
  }

  void take_gates(const JsonField& root, const std::vector<std::byte>& data, std::int64_t experts,
                  Record& record) {
    const auto k = static_cast<std::size_t>(top_k_);
    std::vector<float> logits(static_cast<std::size_t>(experts));
    std::vector<std::int32_t> ids(k);
    std::vector<std::int32_t> best(k);
    record.gates.resize(record.ids.size());
    for (std::int64_t token = 0; token < record.num_tokens; ++token) {
      for (std::int64_t e = 0; e < experts; ++e) {
        std::uint16_t bits = 0;
        std::memcpy(&bits, data.data() + 2 * (token * experts + e), 2);
        const float logit = to_float(Bf16{bits});
        if (!std::isfinite(logit)) {
          throw FileError(root_name(root), fmt::format("logits[token {}, expert {}]", token, e),
                          fmt::format("{}: must be finite", logit));
        }
        logits[static_cast<std::size_t>(e)] = logit;
      }
      const std::size_t first = static_cast<std::size_t>(token) * k;
      for (std::size_t i = 0; i < k; ++i) {
        const std::int64_t id = record.ids[first + i];
        if (id < 0 || id >= experts) {
          throw FileError(root_name(root), fmt::format("top_indices[{}][{}]", token, i),
                          fmt::format("{}: must be in [0, {})", id, experts));
        }
        ids[i] = static_cast<std::int32_t>(id);
      }
      make_gates(logits, ids, mode(), std::span(record.gates).subspan(first, k));
      const std::vector<std::int32_t> tied = select_top_k(logits, best);
      count_agreement(ids, best, tied);
    }
  }

  void count_agreement(std::vector<std::int32_t> ids, std::vector<std::int32_t> best,
                       const std::vector<std::int32_t>& tied) {
    std::ranges::sort(ids);
    std::ranges::sort(best);
    ++agreement_.rows;
    if (ids == best) {
      ++agreement_.equal;
      return;
    }
    std::vector<std::int32_t> differ;
    std::ranges::set_symmetric_difference(ids, best, std::back_inserter(differ));
    agreement_.equal_but_ties += std::ranges::includes(tied, differ) ? 1 : 0;
  }

  /// Row i must be the same token in every layer.
  void require_same_tokens(const std::string& path, std::int64_t layer,
                           const std::vector<Record>& records) const {
    const auto& [first_layer, first] = *layers_.begin();
    const auto same = [](const Record& a, const Record& b) {
      return a.step == b.step && a.num_tokens == b.num_tokens;
    };
    if (!std::ranges::equal(records, first, same)) {
      throw FileError(path, fmt::format("layer {}", layer),
                      fmt::format("its steps have other tokens than those of layer {}: records are missing",
                                  first_layer));
    }
  }

  const ImportOptions& options_;
  const SidecarReader& sidecar_;
  std::map<std::int64_t, std::vector<Record>> layers_;
  std::set<std::tuple<std::int64_t, std::int64_t, std::int64_t>> seen_;
  std::map<std::string, std::int64_t> left_out_;  ///< records of other blocks
  std::int64_t num_records_ = 0;
  std::int64_t top_k_ = 0;
  std::int64_t num_experts_ = 0;
  bool with_logits_ = false;
  Agreement agreement_;
};

/// The rank files of a folder, by rank.
std::vector<fs::path> trace_files(const fs::path& folder) {
  std::vector<std::pair<std::size_t, fs::path>> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("router_trace_rank") && name.ends_with(".jsonl")) {
      files.emplace_back(name.size(), entry.path());  // rank10 behind rank9
    }
  }
  std::ranges::sort(files);
  std::vector<fs::path> paths;
  for (auto& [length, path] : files) {
    paths.push_back(std::move(path));
  }
  return paths;
}

std::vector<std::byte> read_sidecar(const std::string& trace, const std::string& name, std::uint64_t offset,
                                    std::uint64_t bytes) {
  const RegularFile file(fs::path(trace).parent_path() / name);
  // Before anything is made of a size that a record claims.
  if (offset > file.bytes() || bytes > file.bytes() - offset) {
    throw FileError(
        (fs::path(trace).parent_path() / name).string(), "",
        fmt::format("has {} bytes, a record of {} names {} at {}", file.bytes(), trace, bytes, offset));
  }
  std::vector<std::byte> data(bytes);
  file.read_at(offset, data);
  return data;
}

}  // namespace

bool is_megatron(const ImportSource& source) {
  if (source.is_folder) {
    return !trace_files(source.file).empty();
  }
  return source.head.find("\"top_indices\"") != std::string::npos &&
         source.head.find("\"topk\"") < source.head.find("\"top_indices\"");
}

RawRouting parse_megatron(const std::vector<std::pair<std::string, std::string>>& texts,
                          const std::string& path, const ImportOptions& options,
                          const SidecarReader& sidecar) {
  MegatronParser parser(options, sidecar);
  for (const auto& [name, text] : texts) {
    parser.parse(name, text);
  }
  return parser.routing(path);
}

RawRouting read_megatron(const ImportSource& source, const ImportOptions& options) {
  const SidecarReader sidecar = read_sidecar;
  MegatronParser parser(options, sidecar);
  const std::vector<fs::path> files =
      source.is_folder ? trace_files(source.file) : std::vector<fs::path>{source.file};
  for (const fs::path& file : files) {
    parser.parse(file.string(), read_text(file, kMostRowsBytes));
  }
  return parser.routing(source.path);
}

}  // namespace moescope::detail
