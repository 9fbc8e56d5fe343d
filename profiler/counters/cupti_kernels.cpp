// Kernels by CUPTI's activity records.
#include "profiler/counters/cupti_kernels.hpp"

#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "profiler/counters/cupti_library.hpp"

namespace moescope {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
constexpr std::size_t kBufferAlignment = 8;  ///< what CUPTI asks for
constexpr double kNano = 1e-9;

struct Activity {
  std::string name;
  std::uint64_t start_ns;
  std::uint64_t end_ns;
};

/// Where CUPTI's callbacks put what they are given: they carry no pointer of ours. One trace runs at a time.
std::vector<Activity>& collected() {
  static std::vector<Activity> activities;
  return activities;
}

std::string demangled(const char* name) {
  if (name == nullptr) {
    return "kernel without a name";
  }
  int status = -1;
  const std::unique_ptr<char, decltype(&std::free)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status),
                                                         &std::free);
  return status == 0 ? text.get() : name;
}

void add_record(const CUpti_Activity* record) {
  switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
      const auto* kernel = static_cast<const CUpti_ActivityKernel10*>(static_cast<const void*>(record));
      collected().push_back({demangled(kernel->name), kernel->start, kernel->end});
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
      const auto* memset = static_cast<const CUpti_ActivityMemset4*>(static_cast<const void*>(record));
      collected().push_back({"memset", memset->start, memset->end});
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto* copy = static_cast<const CUpti_ActivityMemcpy6*>(static_cast<const void*>(record));
      collected().push_back({"memcpy", copy->start, copy->end});
      break;
    }
    default:
      break;
  }
}

void CUPTIAPI give_buffer(std::uint8_t** buffer, std::size_t* bytes, std::size_t* max_records) {
  *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(kBufferAlignment, kBufferBytes));
  *bytes = *buffer == nullptr ? 0 : kBufferBytes;
  *max_records = 0;  // as many as fit
}

void CUPTIAPI take_buffer(CUcontext /*context*/, std::uint32_t /*stream*/, std::uint8_t* buffer,
                          std::size_t /*bytes*/, std::size_t valid_bytes) {
  CUpti_Activity* record = nullptr;
  while (library().cuptiActivityGetNextRecord(buffer, valid_bytes, &record) == CUPTI_SUCCESS) {
    add_record(record);
  }
  std::free(buffer);
}

/// One kind of activity, recorded while this lives.
class Enabled {
 public:
  explicit Enabled(CUpti_ActivityKind kind) : kind_(kind) {
    library().check(library().cuptiActivityEnable(kind), "cuptiActivityEnable");
  }
  Enabled(const Enabled&) = delete;
  Enabled& operator=(const Enabled&) = delete;
  ~Enabled() { (void)library().cuptiActivityDisable(kind_); }

 private:
  CUpti_ActivityKind kind_;
};

class CuptiTracer final : public KernelTracer {
 public:
  CuptiTracer() {
    library().check(library().cuptiActivityRegisterCallbacks(give_buffer, take_buffer),
                    "cuptiActivityRegisterCallbacks");
  }

  std::vector<KernelRecord> trace(const std::function<void()>& work) override {
    collected().clear();
    {
      const Enabled kernels(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
      const Enabled memsets(CUPTI_ACTIVITY_KIND_MEMSET);
      const Enabled copies(CUPTI_ACTIVITY_KIND_MEMCPY);
      work();
      library().check(library().cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED),
                      "cuptiActivityFlushAll");
    }
    auto activities = std::move(collected());
    std::ranges::sort(activities, {}, &Activity::start_ns);
    std::vector<KernelRecord> records;
    for (Activity& activity : activities) {
      const std::uint64_t first_ns = activities.front().start_ns;
      records.push_back({std::move(activity.name), static_cast<double>(activity.start_ns - first_ns) * kNano,
                         static_cast<double>(activity.end_ns - first_ns) * kNano});
    }
    return records;
  }
};

}  // namespace

std::unique_ptr<KernelTracer> make_cupti_tracer() { return std::make_unique<CuptiTracer>(); }

}  // namespace moescope
