// Any .npz or safetensors as routing to import, in every way that arrays are read: a trace whose ids are
// checked, or an Error.
#include "array_file_use.hpp"
#include "core/import/reader.hpp"
#include "fuzz_text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  fuzz::may_refuse([&] {
    detail::ImportSource source{
        .file = "fuzz.npz", .path = "fuzz.npz", .head = {}, .is_folder = false, .arrays = {}};
    source.arrays = fuzz::parse_arrays(data, size);
    for (const char* format : {"", "ids", "logits", "flat", "packed"}) {
      for (const char* axes : {"", "tokens,layers,k"}) {
        ImportOptions options;
        options.format = format;
        options.axes = axes;
        options.top_k = 2;
        options.num_experts = 1 << 20;
        options.padding = -1;
        fuzz::may_refuse([&] { detail::import_source(source, options).trace.validate("fuzz"); });
      }
    }
  });
  return 0;
}
