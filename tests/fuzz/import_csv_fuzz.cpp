// Any text as CSV of layers and experts: a trace, or an Error.
#include "core/import/reader.hpp"
#include "fuzz_text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  const std::string_view text = fuzz::text_of(data, size);
  const detail::ImportSource source{.file = "fuzz.csv",
                                    .path = "fuzz.csv",
                                    .head = std::string(text.substr(0, 4096)),
                                    .is_folder = false,
                                    .arrays = {}};
  (void)detail::is_csv(source);
  for (const std::int64_t top_k : {0, 1, 2}) {
    ImportOptions options;
    options.num_experts = 1 << 20;
    if (top_k != 0) {
      options.top_k = top_k;
    }
    fuzz::may_refuse(
        [&] { (void)detail::finish_import(detail::parse_csv(source, text, options), "fuzz.csv", options); });
  }
  return 0;
}
