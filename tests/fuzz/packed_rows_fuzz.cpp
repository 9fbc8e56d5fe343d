// Any bytes as rows.jsonl.gz: text, then rows, or an Error.
#include <span>
#include <sstream>

#include "core/files/regular_file.hpp"
#include "core/results/result.hpp"
#include "fuzz_text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  constexpr std::uint64_t kMostBytes = 1 << 20;
  fuzz::may_refuse([&] {
    std::istringstream text(unpack_gzip(std::as_bytes(std::span(data, size)), "fuzz.gz", kMostBytes));
    (void)parse_rows(text, "fuzz.gz");
  });
  return 0;
}
