// Any .npz or safetensors as a trace of layers: the routing of each, or an Error.
#include "array_file_use.hpp"
#include "core/workload/trace_file.hpp"
#include "fuzz_text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  fuzz::may_refuse([&] {
    const ArrayFile file = fuzz::parse_arrays(data, size);
    const TraceInfo info = trace_info(file, "fuzz.npz");
    fuzz::may_refuse([&] { (void)trace_routing(file, "fuzz.npz", std::nullopt).num_pairs(); });
    for (const std::int64_t layer : info.layers) {
      fuzz::may_refuse([&] { trace_routing(file, "fuzz.npz", layer).validate(); });
    }
  });
  return 0;
}
