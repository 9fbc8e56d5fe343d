// Any text as rows.jsonl: runs whose rows are valid, or an Error.
#include <cstdint>
#include <cstdlib>
#include <sstream>

#include "core/base/error.hpp"
#include "core/results/result.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  try {
    // libFuzzer hands out bytes; they are the text.
    std::istringstream text(std::string(reinterpret_cast<const char*>(data), size));  // NOLINT
    const ResultLog log = parse_rows(text, "fuzz");
    if (log.complete_bytes > size) {
      std::abort();
    }
    for (const RecordedRun& run : log.runs) {
      for (const ResultRow& row : run.rows) {
        row.validate();
      }
    }
  } catch (const InternalError&) {
    throw;  // a bug of ours
  } catch (const Error&) {
  }
  return 0;
}
