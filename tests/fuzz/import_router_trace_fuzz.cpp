// Any text as RouterTrace JSON: a trace, or an Error.
#include "core/import/reader.hpp"
#include "fuzz_text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  const std::string_view text = fuzz::text_of(data, size);
  const detail::ImportSource source{.file = "fuzz.json",
                                    .path = "fuzz.json",
                                    .head = std::string(text.substr(0, 4096)),
                                    .is_folder = false,
                                    .arrays = {}};
  (void)detail::is_router_trace(source);
  fuzz::may_refuse([&] {
    detail::RawRouting routing = detail::parse_router_trace(source, text);
    ImportOptions options;
    if (routing.num_experts == 0) {
      options.num_experts = 1 << 20;
    }
    (void)detail::finish_import(std::move(routing), "fuzz.json", options);
  });
  return 0;
}
