#pragma once

#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "core/base/error.hpp"
#include "core/results/result.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/temporary_directory.hpp"

/// Rows and headers for tests of those who write and read them.
namespace moescope::test {

inline ResultRow make_row() {
  ResultRow row;
  row.schedule = "staircase";
  row.stage = "experts";
  row.backend = "cpu";
  row.set_shape(LayerShape{.num_tokens = 7, .hidden_size = 96, .grid_rows = 48, .grid_cols = 16, .top_k = 5});
  row.group_size = 64;
  row.tile_tokens = 96;
  row.workload = "trace:a,b \"c\".npy";
  row.seed = std::numeric_limits<std::uint64_t>::max();
  row.l2_state = "cold";
  row.metric = "time_s";
  row.value = 0.1;
  row.unit = "s";
  row.samples = 11;
  row.spread = 1.0 / 3.0;
  return row;
}

inline ResultRow make_skipped_row() {
  ResultRow row = make_row();
  row.value.reset();
  row.spread.reset();
  row.samples = 0;
  row.status = Status::kSkipped;
  row.reason = "no \"such\" schedule,\nhere";
  return row;
}

inline RunHeader make_header(const std::string& id = "run") {
  const char* argv[] = {"moescope", "run", "--workload", "trace:my file.npy"};
  RunHeader header = make_run_header(4, argv);
  header.run_id = id;
  return header;
}

inline std::string message_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

/// As version 1 wrote it: without what later versions added.
inline std::string version_1_text() {
  const TemporaryDirectory directory;
  { ResultWriter(directory.path(), make_header()).write(make_row()); }
  std::istringstream lines(read_text(directory.path() / "rows.jsonl"));
  std::string text;
  for (std::string line; std::getline(lines, line);) {
    nlohmann::json old = nlohmann::json::parse(line);
    old["schema_version"] = 1;
    for (const char* key :
         {"shared_size", "B", "tile_tokens", "activation", "gates", "point", "repro", "direction",
          "expert_size", "heads", "key_size", "ranks", "rank", "placement", "peer", "exchange", "save", "gradients",
          "optimizer"}) {
      old.erase(key);
    }
    if (old.contains("header")) {
      old["header"].erase("experiment");
    }
    text += old.dump() + '\n';
  }
  return text;
}

}  // namespace moescope::test
