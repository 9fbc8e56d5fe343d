#include "profiler/counters/perf_events.hpp"

#include <fmt/format.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <utility>

namespace moescope {
namespace {

struct Event {
  std::string_view name;
  std::uint32_t type;
  std::uint64_t config;
};

constexpr std::array<Event, 3> kEvents = {{
    {"instructions", PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS},
    {"cycles", PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES},
    {"llc_read_misses", PERF_TYPE_HW_CACHE,
     PERF_COUNT_HW_CACHE_LL | (PERF_COUNT_HW_CACHE_OP_READ << 8U) | (PERF_COUNT_HW_CACHE_RESULT_MISS << 16U)},
}};

const Event* find_event(std::string_view name) {
  const auto* const found = std::ranges::find(kEvents, name, &Event::name);
  return found == kEvents.end() ? nullptr : found;
}

/// An open counter of one thread.
class Descriptor {
 public:
  Descriptor(const Event& event, pid_t thread) {
    perf_event_attr attributes{};
    attributes.size = sizeof attributes;
    attributes.type = event.type;
    attributes.config = event.config;
    attributes.disabled = 1;
    attributes.exclude_kernel = 1;
    attributes.exclude_hv = 1;
    attributes.read_format = PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING;
    file_ = static_cast<int>(syscall(SYS_perf_event_open, &attributes, thread, -1, -1, PERF_FLAG_FD_CLOEXEC));
    error_ = file_ < 0 ? errno : 0;
  }
  Descriptor(Descriptor&& other) noexcept : file_(std::exchange(other.file_, -1)), error_(other.error_) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (file_ >= 0) {
      close(file_);
    }
  }
  int error() const { return error_; }
  void start() const {
    ioctl(file_, PERF_EVENT_IOC_RESET, 0);
    ioctl(file_, PERF_EVENT_IOC_ENABLE, 0);
  }
  void stop() const { ioctl(file_, PERF_EVENT_IOC_DISABLE, 0); }
  /// Empty when the counter shared its hardware with another one: that would be an estimate.
  std::optional<double> value() const {
    struct {
      std::uint64_t value, enabled_ns, running_ns;
    } reading{};
    if (read(file_, &reading, sizeof reading) != static_cast<ssize_t>(sizeof reading) ||
        reading.running_ns < reading.enabled_ns) {
      return std::nullopt;
    }
    return static_cast<double>(reading.value);
  }

 private:
  int file_ = -1;
  int error_ = 0;
};

std::string paranoid() {
  std::ifstream file("/proc/sys/kernel/perf_event_paranoid");
  std::string level;
  return file >> level ? level : "unknown";
}

std::string reason_of(int error) {
  switch (error) {
    case EACCES:
    case EPERM:
      return fmt::format(
          "not permitted: kernel.perf_event_paranoid = {}, must be 2 or less (or the process needs "
          "CAP_PERFMON)",
          paranoid());
    case ENOENT:
    case ENODEV:
    case EOPNOTSUPP:
      return fmt::format(
          "the kernel sees no such counter on this machine (virtual machines often have none); "
          "kernel.perf_event_paranoid = {}",
          paranoid());
    case ENOSYS:
      return "this kernel has no perf_event";
    default:
      return fmt::format("perf_event_open: {}; kernel.perf_event_paranoid = {}", std::strerror(error),
                         paranoid());
  }
}

/// Threads that exist now: those of OpenMP's pool among them.
std::vector<pid_t> threads() {
  std::vector<pid_t> ids;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    const std::string name = entry.path().filename();
    pid_t id = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), id).ec == std::errc()) {
      ids.push_back(id);
    }
  }
  return ids;
}

/// One counter on every thread.
struct Counter {
  std::string name;
  std::vector<Descriptor> threads;
};

class PerfEvents final : public CounterSource {
 public:
  std::string name() const override { return "perf_event"; }

  CounterPlan plan(std::span<const std::string> counters) override {
    CounterPlan plan;
    plan.chip = "cpu";
    for (const std::string& counter : counters) {
      const Event* event = find_event(counter);
      if (event == nullptr) {
        plan.unavailable.push_back({counter, "not a counter of perf_event here"});
      } else if (const Descriptor probe(*event, 0); probe.error() != 0) {
        plan.unavailable.push_back({counter, reason_of(probe.error())});
      } else {
        plan.counters.push_back(counter);
      }
    }
    plan.passes = plan.counters.empty() ? 0 : 1;
    return plan;
  }

  std::vector<RangeCounters> measure(const CounterPlan& plan, const RangedWork& work) override {
    std::vector<Counter> counters;
    const auto ids = threads();
    for (const std::string& name : plan.counters) {
      Counter& counter = counters.emplace_back(Counter{name, {}});
      for (const pid_t id : ids) {
        counter.threads.emplace_back(*find_event(name), id);
      }
    }
    if (plan.passes > 0 && work.before_pass) {
      work.before_pass();
    }
    std::vector<RangeCounters> results;
    for (std::size_t range = 0; range < work.ranges.size(); ++range) {
      results.push_back({work.ranges[range], {}});
      if (plan.passes == 0) {
        continue;
      }
      for_all(counters, &Descriptor::start);
      work.run(range);
      for_all(counters, &Descriptor::stop);
      for (const Counter& counter : counters) {
        if (const auto sum = sum_of(counter)) {
          results.back().values[counter.name] = *sum;
        }
      }
    }
    return results;
  }

 private:
  static void for_all(const std::vector<Counter>& counters, void (Descriptor::*act)() const) {
    for (const Counter& counter : counters) {
      for (const Descriptor& thread : counter.threads) {
        (thread.*act)();
      }
    }
  }
  static std::optional<double> sum_of(const Counter& counter) {
    double sum = 0;
    for (const Descriptor& thread : counter.threads) {
      const auto value = thread.value();
      if (!value) {
        return std::nullopt;
      }
      sum += *value;
    }
    return sum;
  }
};

}  // namespace

std::unique_ptr<CounterSource> make_perf_events() { return std::make_unique<PerfEvents>(); }

MetricSelection perf_event_metrics() {
  const long line = sysconf(_SC_LEVEL3_CACHE_LINESIZE);
  constexpr long kUsualLine = 64;  // of x86-64; the C library does not know it on every machine
  MetricSelection selection;
  selection.chip = "cpu";
  selection.metrics = {
      {"instructions", "instructions", "executed in user mode by all threads", {{"instructions", 1}}, {}},
      {"cpu_cycles", "cycles", "in user mode, summed over threads", {{"cycles", 1}}, {}},
      {"hbm_read_bytes",
       "bytes",
       "reads that missed the last-level cache, times its line",
       {{"llc_read_misses", static_cast<double>(line > 0 ? line : kUsualLine)}},
       {}},
  };
  return selection;
}

}  // namespace moescope
