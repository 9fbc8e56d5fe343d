// Any text as a Megatron trace, beside logits that are the text's own bytes: a trace, or an Error.
#include "core/base/error.hpp"
#include "core/import/megatron.hpp"
#include "fuzz_text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  const std::string text(fuzz::text_of(data, size));
  const detail::SidecarReader sidecar = [&](const std::string&, const std::string& name, std::uint64_t offset,
                                            std::uint64_t bytes) {
    if (offset > text.size() || bytes > text.size() - offset) {
      throw FileError(name, "", "is shorter");
    }
    const auto all = std::as_bytes(std::span(text)).subspan(offset, bytes);
    return std::vector<std::byte>(all.begin(), all.end());
  };
  ImportOptions options;
  options.num_experts = 1 << 20;
  fuzz::may_refuse([&] {
    detail::RawRouting routing = detail::parse_megatron({{"fuzz.jsonl", text}}, "fuzz", options, sidecar);
    if (routing.num_experts != 0) {
      options.num_experts.reset();
    }
    (void)detail::finish_import(std::move(routing), "fuzz", options);
  });
  return 0;
}
