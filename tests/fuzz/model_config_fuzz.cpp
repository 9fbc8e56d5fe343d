// Any text as a Hugging Face config.json: the shape of a layer, or an Error.
#include "core/import/model_config.hpp"
#include "fuzz_text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  fuzz::may_refuse([&] { (void)parse_model_config(fuzz::text_of(data, size), "fuzz"); });
  return 0;
}
